//! The entry points of the fuzz targets in `fuzz/`.
//!
//! Each function passes untrusted bytes to one of our parsers and returns whether the parser
//! accepted them. It panics if the parser violates one of its properties.

use crate::notify::{MainProcess, Notifier};

/// Parses a message from another generation. A valid message must survive encoding and parsing
/// again.
#[must_use]
pub fn message(packet: &[u8]) -> bool {
    crate::handoff::fuzz::message(packet)
}

/// Parses what a process inherits at startup: its environment variables, in the format of
/// `/proc/PID/environ`, and after an empty variable the first message of its predecessor. What the
/// process passes on to its own successor must say the same.
#[must_use]
pub fn birth(bytes: &[u8]) -> bool {
    let program = crate::handoff::fuzz::birth(bytes);
    program.is_some_and(|program| Notifier::new(program.notify_socket(), MainProcess::Head).is_ok())
}

/// Parses the packet of a carried connection and restores its state. Saving the restored state
/// must give the same bytes.
#[must_use]
pub fn carry(packet: &[u8]) -> bool {
    crate::carry::fuzz::connection(packet).is_some_and(crate::service::fuzz::take_up)
}

/// Parses a successor's answer to a carried connection.
#[must_use]
pub fn carry_answer(packet: &[u8]) -> bool {
    crate::carry::fuzz::answer(packet)
}

/// Parses a client's request on the control socket. Every request must get a reply.
#[must_use]
pub fn control_request(bytes: &[u8]) -> bool {
    crate::control::fuzz::request(bytes)
}

/// Parses a daemon's replies on the control socket. An invalid line must give an error message of
/// one line.
#[must_use]
pub fn control_reply(bytes: &[u8]) -> bool {
    crate::control::fuzz::replies(bytes)
}

/// Parses the name of a socket from the service manager's store.
#[must_use]
pub fn stored_name(bytes: &[u8]) -> bool {
    crate::net::fuzz_stored_name(bytes)
}

/// Parses the first bytes from a client as a PROXY header. The meaning of a header must not depend
/// on the bytes after it, and an incomplete header must not be taken for a complete one.
#[must_use]
pub fn proxy_header(bytes: &[u8]) -> bool {
    crate::service::fuzz::proxy_header(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    type Target = fn(&[u8]) -> bool;
    /// The files of a corpus, each with its name.
    type Seeds = Vec<(String, Vec<u8>)>;

    /// Returns the fuzz targets, each with seed files written by our encoders.
    /// `tests/config_text.rs` has the targets for the configuration file.
    fn targets() -> [(&'static str, Target, Seeds); 8] {
        [
            ("message", message, crate::handoff::fuzz::messages()),
            ("birth", birth, crate::handoff::fuzz::births()),
            ("carry", carry, carried()),
            ("carry_answer", carry_answer, crate::carry::fuzz::answers()),
            ("control_request", control_request, crate::control::fuzz::requests()),
            ("control_reply", control_reply, crate::control::fuzz::conversations()),
            ("stored_name", stored_name, crate::net::stored_names()),
            ("proxy_header", proxy_header, Vec::new()),
        ]
    }

    /// Returns a packet for each kind of carried state.
    fn carried() -> Seeds {
        let parcels = crate::service::fuzz::parcels().into_iter();
        parcels.map(|(name, parcel)| (name, crate::carry::fuzz::packet(&parcel))).collect()
    }

    fn folder(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    /// Every file must be accepted unless its name begins with `not-`.
    #[test]
    fn every_file_of_the_corpus_is_read_as_its_name_says() {
        for (target, read, seeds) in targets() {
            let files: Vec<_> =
                fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(files.len() >= seeds.len().max(3), "the corpus of {target} is too small");
            for file in files {
                let is_wrong = file.file_name().unwrap().to_str().unwrap().starts_with("not-");
                assert_ne!(read(&fs::read(&file).unwrap()), is_wrong, "{}", file.display());
            }
        }
    }

    #[test]
    fn what_the_encoders_write_is_understood() {
        for (target, read, seeds) in targets() {
            seeds.iter().for_each(|(name, bytes)| assert!(read(bytes), "{target}: {name}"));
        }
    }

    #[test]
    #[ignore = "writes fuzz/corpus: cargo test --lib writes_the_corpus -- --ignored"]
    fn writes_the_corpus() {
        for (target, _, seeds) in targets() {
            fs::create_dir_all(folder(target)).unwrap();
            seeds
                .into_iter()
                .for_each(|(name, bytes)| fs::write(folder(target).join(name), bytes).unwrap());
        }
    }
}
