//! The layers of the source: a module imports only the modules below it. The table matches the one
//! in docs/architecture.md.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that each module of the library may import. `words` contains plain values.
const MAY_IMPORT: [(&str, &[&str]); 20] = [
    ("sys", &["error"]),
    ("text", &[]),
    ("error", &["text"]),
    ("generation", &[]),
    ("drain", &[]),
    ("report", &["generation"]),
    ("address", &["error"]),
    ("config", &["address", "report", "error"]),
    ("config_file", &["config", "address", "error", "text"]),
    ("notify", &["sys", "error"]),
    ("net", &["sys", "address", "config", "error"]),
    ("carry", &["net", "sys"]),
    ("service", &["net", "drain", "carry", "address", "config", "report", "error"]),
    ("handoff", &["net", "sys", "generation", "report", "error", "text"]),
    ("data_plane", &["net", "drain", "report", "error"]),
    ("server", &["data_plane", "net", "service", "drain", "carry", "config", "report", "error"]),
    ("control", &["net", "sys", "generation", "report", "error", "text"]),
    (
        "lifecycle",
        &[
            "handoff",
            "data_plane",
            "server",
            "notify",
            "control",
            "service",
            "net",
            "drain",
            "carry",
            "config",
            "address",
            "generation",
            "report",
            "error",
            "sys",
        ],
    ),
    // The entry points for fuzz/, only compiled with `cfg(fuzzing)`.
    ("fuzzing", &["carry", "control", "handoff", "net", "notify", "service"]),
    (
        "lib",
        &[
            "address",
            "carry",
            "config",
            "config_file",
            "control",
            "data_plane",
            "drain",
            "error",
            "generation",
            "handoff",
            "lifecycle",
            "net",
            "report",
            "server",
            "service",
            "text",
        ],
    ),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns all files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Returns the module of a file: the first part of its path below `src`.
fn module(path: &Path) -> String {
    let first = path.strip_prefix(source()).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// Returns the library modules that a file names with `crate::`, except in comments.
fn imports(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let named =
        code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    named
        .map(|rest| {
            rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
        })
        .collect()
}

#[test]
fn every_module_imports_only_modules_below_it() {
    let mut seen = BTreeSet::new();
    for path in files(&source()) {
        let module = module(&path);
        if module == "bin" {
            continue;
        }
        let rule = MAY_IMPORT.iter().find(|(name, _)| *name == module);
        let (_, allowed) = rule.unwrap_or_else(|| panic!("{module} has no row in the table"));
        for import in imports(&path) {
            let below = import == module || allowed.contains(&import.as_str());
            assert!(below, "{} imports {import}, which {module} may not", path.display());
        }
        seen.insert(module);
    }
    assert_eq!(seen.len(), MAY_IMPORT.len(), "the table names a module that no longer exists");
}

#[test]
fn the_binary_uses_only_the_public_api() {
    for path in files(&source().join("bin")) {
        let text = fs::read_to_string(&path).unwrap();
        let inner = text.lines().find(|line| line.contains("handoffd::") && line.contains("::sys"));
        assert_eq!(inner, None, "{}", path.display());
        assert!(!text.contains("#[path"), "{} reaches into the library", path.display());
    }
}

#[test]
fn unsafe_code_is_only_in_sys() {
    for path in files(&source()).into_iter().filter(|path| module(path) != "sys") {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found: Vec<_> =
            code.filter(|line| line.contains("unsafe {") || line.contains("unsafe fn")).collect();
        assert!(found.is_empty(), "{}: {found:?}", path.display());
    }
}
