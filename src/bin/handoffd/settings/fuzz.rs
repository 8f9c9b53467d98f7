//! The fuzz target for the configuration file. For any input, the parser must return a valid
//! configuration or a one-line error with a position in the file.

use handoffd::listen::Listeners;

use super::file::{ConfigFile, FileSettings, ServiceConfig};
use crate::failure::Failure;

/// Parses any bytes as a configuration file. Panics if the parser returns an invalid configuration,
/// or an error that is not one line with a valid position.
pub(crate) fn read(bytes: &[u8]) {
    match ConfigFile::of("a.toml".into(), bytes.to_vec()).parse() {
        Ok(file) => check_settings(&file),
        Err(failure) => check_failure(&failure, bytes),
    }
}

fn check_settings(file: &FileSettings) {
    let Listeners::Named(listeners) = &file.listeners else { unreachable!("no listener") };
    assert_eq!(listeners.as_slice().len(), file.services.len());
    for (listener, (name, service)) in listeners.as_slice().iter().zip(&file.services) {
        assert_eq!(listener.name.as_ref(), Some(name));
        if let ServiceConfig::Proxy(proxy) = service {
            assert!(!proxy.upstreams.as_slice().is_empty() && !proxy.connect_timeout.is_zero());
        }
    }
}

fn check_failure(failure: &Failure, bytes: &[u8]) {
    let said = failure.to_string();
    let Failure::ConfigFile { line, column, .. } = failure else { unreachable!("{said}") };
    assert!(said.starts_with(&format!("a.toml:{line}:{column}: ")), "{said}");
    assert!(!said.contains(char::is_control) && said.len() < 5000, "{said}");
    let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    assert!((1..=lines.len()).contains(line), "{said}");
    assert!((1..=lines[line - 1].len() + 1).contains(column), "{said}");
}
