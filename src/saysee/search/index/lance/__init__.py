"""An index in LanceDB: tables of files in a folder or an object store, without a server."""
