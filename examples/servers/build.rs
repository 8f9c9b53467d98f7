//! Generates the gRPC service of the recipe for tonic. It is described here instead of in a
//! `.proto` file, so that no compiler for such files is needed.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::Name")
            .output_type("crate::Greeting")
            .codec_path("tonic_prost::ProstCodec")
    };
    let service = Service::builder()
        .name("Greeter")
        .package("greeter")
        .method(method("greet", "Greet").build())
        .method(method("greet_often", "GreetOften").server_streaming().build())
        .build();
    Builder::new().build_client(true).compile(&[service]);
}
