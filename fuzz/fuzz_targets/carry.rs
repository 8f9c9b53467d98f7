//! Any bytes are a connection that this generation can serve, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The properties are asserted in the library, beside the parsers.
fuzz_target!(|bytes: &[u8]| {
    let _ = handoffd::fuzzing::carry(bytes);
});
