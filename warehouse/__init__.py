"""DuckDB: schema, views, expectations, load, publish."""
