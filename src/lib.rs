//! The sync server for Taskwarrior 3 and every other TaskChampion program.
#![forbid(unsafe_code)]

pub mod config;
pub mod healthcheck;
pub mod http;
pub mod logging;
pub mod protocol;
pub mod service;
pub mod storage;
pub mod workers;
