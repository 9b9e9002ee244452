"""Stores in SQL databases: SQLite with faiss files in a folder, and PostgreSQL with pgvector."""
