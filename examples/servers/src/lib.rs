//! What the recipes share with their clients: the messages and the generated service of the recipe
//! for tonic, and the frames of the recipe for websockets that move.

pub mod frames;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Name {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Greeting {
    #[prost(string, tag = "1")]
    pub text: String,
}

pub mod greeter {
    include!(concat!(env!("OUT_DIR"), "/greeter.Greeter.rs"));
}

/// A lock file that witnesses that nobody else works. Panics if another process holds the lock.
pub fn lock(path: &str) -> std::fs::File {
    let file = std::fs::File::create(path).expect("a lock file");
    file.try_lock().expect("nobody else works");
    file
}
