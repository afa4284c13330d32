//! One HTTP connection.
