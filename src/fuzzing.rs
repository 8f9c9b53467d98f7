//! The functions that the fuzz targets in `fuzz/` call.
//!
//! Each function passes untrusted bytes to one of our parsers, and returns whether the parser
//! accepted them. The function panics if the parser violates a property that must always hold.

use crate::notify::{MainProcess, Notifier};

/// Parses a message from another generation. Panics if a valid message changes when it is encoded
/// and parsed again.
#[must_use]
pub fn message(packet: &[u8]) -> bool {
    crate::handoff::fuzz::message(packet)
}

/// Parses all that a process inherits at its start. The input consists of the environment, in the
/// format of `/proc/PID/environ`, an empty variable, and the first message of the predecessor.
/// Panics if the process would inherit one value and pass on another to its own successor.
#[must_use]
pub fn birth(bytes: &[u8]) -> bool {
    let program = crate::handoff::fuzz::birth(bytes);
    program.is_some_and(|program| {
        Notifier::new(program.notify_socket(), MainProcess::ActiveGeneration).is_ok()
    })
}

/// Parses the packet that moves a connection to another process, and restores the connection's
/// state. Panics if saving the restored state yields different bytes.
#[must_use]
pub fn carry(packet: &[u8]) -> bool {
    crate::carry::fuzz::connection(packet).is_some_and(crate::service::fuzz::take_up)
}

/// Parses a successor's answer, which accepts or refuses an offered connection.
#[must_use]
pub fn carry_answer(packet: &[u8]) -> bool {
    crate::carry::fuzz::answer(packet)
}

/// Parses a client's request on the control socket. Panics if a request would get no reply.
#[must_use]
pub fn control_request(bytes: &[u8]) -> bool {
    crate::control::fuzz::request(bytes)
}

/// Parses the replies of a daemon on the control socket. Panics if the error message about an
/// invalid reply spans several lines.
#[must_use]
pub fn control_reply(bytes: &[u8]) -> bool {
    crate::control::fuzz::replies(bytes)
}

/// Parses the name of a socket in the file descriptor store of the service manager.
#[must_use]
pub fn stored_name(bytes: &[u8]) -> bool {
    crate::net::fuzz_stored_name(bytes)
}

/// Parses the first bytes from a client as a PROXY header. Panics if the bytes after a header
/// change its meaning, or if an incomplete header is accepted as complete.
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
    /// The name and the contents of each seed file of a fuzz target.
    type Seeds = Vec<(String, Vec<u8>)>;

    /// Returns the fuzz targets, each with seed files that our own encoders have written. The fuzz
    /// target for the configuration file is in `src/bin/handoffd`.
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

    /// Returns one packet for each kind of connection state that can move to another process.
    fn carried() -> Seeds {
        let saved_states = crate::service::fuzz::saved_states().into_iter();
        saved_states
            .map(|(name, saved_state)| (name, crate::carry::fuzz::packet(&saved_state)))
            .collect()
    }

    fn folder(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    /// Each parser refuses the files whose names begin with `not-`, and accepts all other files.
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
