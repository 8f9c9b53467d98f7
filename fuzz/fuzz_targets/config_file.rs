//! Any bytes are a configuration that can be served, or are refused in one line that names a place
//! in them.
#![no_main]

use std::path::Path;

use handoffd::{ConfigFile, Error, ServiceConfig};
use handoffd::listen::Listeners;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match ConfigFile::parse(Path::new("a.toml"), bytes) {
        Ok(file) => {
            let Listeners::Named(listeners) = &file.config.listeners else { panic!("no listener") };
            assert_eq!(listeners.as_slice().len(), file.services.len());
            for (listener, (name, service)) in listeners.as_slice().iter().zip(&file.services) {
                assert_eq!(listener.name.as_ref(), Some(name));
                if let ServiceConfig::Proxy(proxy) = service {
                    assert!(
                        !proxy.upstreams.as_slice().is_empty() && !proxy.connect_timeout.is_zero()
                    );
                }
            }
        }
        Err(error @ Error::ConfigFile { line, column, .. }) => {
            let said = error.to_string();
            assert!(said.starts_with(&format!("a.toml:{line}:{column}: ")), "{said}");
            assert!(!said.contains(char::is_control) && said.len() < 5000, "{said}");
            let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
            assert!((1..=lines.len()).contains(&line), "{said}");
            assert!((1..=lines[line - 1].len() + 1).contains(&column), "{said}");
        }
        Err(error) => panic!("{error}"),
    }
});
