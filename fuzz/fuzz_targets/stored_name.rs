//! Any bytes are the name of a socket in the service manager's store, or are not.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The properties are asserted in the library, beside the parsers.
fuzz_target!(|bytes: &[u8]| {
    let _ = handoffd::fuzzing::stored_name(bytes);
});
