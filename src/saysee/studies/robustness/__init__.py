"""How retrieval degrades when speech or images are changed: the changes, the study, and its picture."""
