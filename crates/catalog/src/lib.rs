//! Settings, jobs, events and statistics of one host, in SQLite.
