//! Any bytes begin with a PROXY header or do not, whatever follows it and in whatever parts it comes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What has to hold is asserted there.
    let _ = handoffd::fuzzing::proxy_header(bytes);
});
