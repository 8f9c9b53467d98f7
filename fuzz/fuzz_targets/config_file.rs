//! Any bytes are a configuration that can be served, or are refused in one line that names a place
//! in them.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the daemon uses the rest of its settings")]

use libfuzzer_sys::fuzz_target;

// The settings belong to the binary, which is no library.
#[path = "../../src/bin/handoffd/failure.rs"]
mod failure;
#[path = "../../src/bin/handoffd/routes.rs"]
mod routes;
#[path = "../../src/bin/handoffd/settings/mod.rs"]
mod settings;

fuzz_target!(|bytes: &[u8]| settings::fuzz::read(bytes));
