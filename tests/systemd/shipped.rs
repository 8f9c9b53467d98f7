//! What the project ships beside the program: unit files, drop-ins of the documentation, and the
//! scripts of these tests.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the path of a shipped unit file.
pub(crate) fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// Returns the drop-in in the runbook that contains `word`.
pub(crate) fn documented(word: &str) -> String {
    let runbook = fs::read_to_string(shipped("../docs/operations.md")).unwrap();
    let blocks = runbook.split("```ini\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks
        .filter(|block| block.contains(word))
        .map(str::to_owned)
        .next()
        .expect("a drop-in in the runbook")
}

/// Returns the path of a script in this folder.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd").join(name)
}
