//! Any text as the configuration file is a configuration or a list of problems, one line each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sync_server::config::file::File;
use sync_server::config::{Sources, render, resolve};

fuzz_target!(|text: &str| {
    let file = File { path: "config.toml".into(), text: Ok(text.to_owned()), world_readable: true };
    let sources = Sources { file: Some(file), cwd: "/".into(), ..Sources::default() };
    let lines = match resolve(&sources) {
        Ok(resolved) => {
            assert!(!resolved.config.listen.is_empty());
            assert!(!render::effective(&resolved).is_empty());
            resolved.config.warnings
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            problems
        }
    };
    for line in lines {
        assert!(!line.is_empty() && !line.contains(['\n', '\r']), "{line:?}");
    }
});
