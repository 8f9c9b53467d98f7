//! The layers of the source: a module imports only the modules that the table in
//! docs/architecture.md allows. Also the names of types, because a reader who searches for one
//! should find one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the modules that each module may import, as docs/architecture.md has them.
fn may_import() -> BTreeMap<String, BTreeSet<String>> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = fs::read_to_string(document).unwrap();
    let table = text.split_once("| module | may import |\n|---|---|\n").unwrap().1;
    let mut rules = BTreeMap::<String, BTreeSet<String>>::new();
    for row in table.lines().map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |")) {
        let (modules, allowed) = row.split_once(" | ").unwrap();
        let allowed = match allowed.split(';').next().unwrap() {
            "nothing of ours" => BTreeSet::new(),
            "everything above" => rules.keys().cloned().collect(),
            // A test of its own.
            "the public API only" => continue,
            named => named.split(", ").map(str::to_owned).collect(),
        };
        rules.extend(modules.split(", ").map(|module| (module.to_owned(), allowed.clone())));
    }
    rules
}

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
    let rules = may_import();
    let mut seen = BTreeSet::new();
    for path in files(&source()) {
        let module = module(&path);
        // The binary is another crate, and the root of the library only puts its modules together.
        if module == "bin" || module == "lib" {
            continue;
        }
        let allowed = rules.get(&module);
        let allowed = allowed.unwrap_or_else(|| panic!("{module} has no row in the table"));
        for import in imports(&path) {
            let is_allowed = import == module || allowed.contains(&import);
            assert!(is_allowed, "{} imports {import}, which {module} may not", path.display());
        }
        seen.insert(module);
    }
    assert_eq!(seen, rules.into_keys().collect(), "a row of the table has no module");
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

/// Returns the type that a line of code declares, if any.
fn declared_type(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) => rest.split_once(' ')?.1.trim_start(),
        None => line,
    };
    // `pub(in path)` has a space inside.
    let line = line
        .split_once(") ")
        .filter(|(path, _)| !path.contains(' '))
        .map_or(line, |(_, rest)| rest);
    let keywords = ["struct ", "enum ", "trait ", "union "];
    let name = keywords.iter().find_map(|keyword| line.strip_prefix(keyword))?;
    name.split(|letter: char| !letter.is_alphanumeric()).next()
}

#[test]
fn no_two_types_have_one_name() {
    let mut seen = BTreeMap::<String, PathBuf>::new();
    for path in files(&source()) {
        let text = fs::read_to_string(&path).unwrap();
        for name in text.lines().filter_map(declared_type) {
            if let Some(first) = seen.insert(name.to_owned(), path.clone()) {
                panic!("{name} is a type in {} and in {}", first.display(), path.display());
            }
        }
    }
    assert!(seen.len() > 300, "only {} types were found", seen.len());
}
