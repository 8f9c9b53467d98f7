//! Any bytes begin with a PROXY header or do not, whatever follows it and in whatever parts it
//! comes.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The properties are asserted in the library, beside the parsers.
fuzz_target!(|bytes: &[u8]| {
    let _ = handoffd::fuzzing::proxy_header(bytes);
});
