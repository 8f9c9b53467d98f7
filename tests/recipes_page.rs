//! Tests of docs/servers.md: its programs are those that the tests compile and run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Returns the programs of the page, by the name in the comment above each of them.
fn on_the_page(page: &str) -> BTreeMap<String, String> {
    let parts = page.split("<!-- ").skip(1).filter_map(|part| part.split_once(" -->\n```rust\n"));
    parts
        .map(|(name, rest)| (name.to_owned(), rest.split_once("```").unwrap().0.to_owned()))
        .collect()
}

#[test]
fn the_page_shows_the_programs_that_are_tested() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shown = on_the_page(&fs::read_to_string(here.join("docs/servers.md")).unwrap());
    for file in fs::read_dir(here.join("examples/servers/src/bin")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(shown.remove(name).as_ref(), Some(&text), "{name} on the page");
        let tests = fs::read_to_string(here.join("tests/servers/main.rs")).unwrap();
        assert!(tests.contains(&format!("\"{name}\"")), "{name} has no test");
    }
    assert!(shown.is_empty(), "{shown:?}");
}

#[test]
fn the_template_has_the_unit_of_the_page() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(here.join("docs/servers.md")).unwrap();
    let (_, rest) = page.split_once("```ini\n").unwrap();
    let unit = fs::read_to_string(here.join("examples/template/my-server.service")).unwrap();
    assert_eq!(rest.split_once("```").unwrap().0, unit);
}

/// What concerns handoffd in a program: the lines that name it, its server, or the life.
#[test]
fn at_most_ten_lines_of_a_recipe_concern_the_library() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/servers/src/bin");
    for name in ["axum_tcp", "hyper", "tonic", "actix"] {
        let text = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
        let words = ["handoffd", "serve_", "serve(", "life", "Life", "announce", "connections"];
        let is_ours = |line: &&str| words.iter().any(|word| line.contains(word));
        let lines: Vec<_> = text.lines().filter(is_ours).collect();
        assert!(lines.len() <= 10, "{name}: {lines:#?}");
    }
}
