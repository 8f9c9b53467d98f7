use handoffd::{Builder, Error};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let greeting = Bytes::from(format!("generation {}\n", life.generation()));
        let service = service_fn(move |_: Request<Incoming>| {
            let reply = Response::new(Full::new(greeting.clone()));
            async { Ok::<_, Error>(reply) }
        });
        handoffd::hyper::serve(&life, "http", service).await
    })?;
    Ok(())
}
