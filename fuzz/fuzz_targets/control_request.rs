//! Any bytes are a request of an operator, or are refused with a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The properties are asserted in the library, beside the parsers.
fuzz_target!(|bytes: &[u8]| {
    let _ = handoffd::fuzzing::control_request(bytes);
});
