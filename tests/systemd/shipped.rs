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
    block("ini", word)
}

/// Returns the shell commands in the runbook that contain `word`.
pub(crate) fn documented_commands(word: &str) -> String {
    block("sh", word)
}

fn block(language: &str, word: &str) -> String {
    let runbook = fs::read_to_string(shipped("../docs/operations.md")).unwrap();
    let opening = format!("```{language}\n");
    let blocks = runbook.split(&opening).skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains(word)).expect("a block in the runbook").to_owned()
}

/// Returns the path of a script in this folder.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd").join(name)
}
