"""Where bytes rest: evidence frames, model versions, data sets, the SQL database."""
