//! Any bytes are replies to an operator, or end in an error of one line.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The properties are asserted in the library, beside the parsers.
fuzz_target!(|bytes: &[u8]| {
    let _ = handoffd::fuzzing::control_reply(bytes);
});
