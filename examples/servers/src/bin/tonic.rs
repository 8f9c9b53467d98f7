use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt};
use handoffd::Builder;
use handoffd::embed::Life;
use servers::greeter::greeter_server::{Greeter, GreeterServer};
use servers::{Greeting, Name};
use tonic::{Request, Response, Status, transport::Server};

struct Greets(Life);

#[tonic::async_trait]
impl Greeter for Greets {
    type GreetOftenStream = Pin<Box<dyn Stream<Item = Result<Greeting, Status>> + Send>>;

    async fn greet(&self, name: Request<Name>) -> Result<Response<Greeting>, Status> {
        Ok(Response::new(Greeting { text: format!("hello, {}", name.get_ref().name) }))
    }

    async fn greet_often(
        &self,
        name: Request<Name>,
    ) -> Result<Response<Self::GreetOftenStream>, Status> {
        let text = format!("hello, {}", name.get_ref().name);
        let greetings = async_stream::stream! {
            loop {
                yield Ok(Greeting { text: text.clone() });
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // The stream ends between two messages, with the status OK. By then GOAWAY has told the
        // client to send its next request on another connection.
        Ok(Response::new(Box::pin(greetings.take_until(self.0.closing()))))
    }
}

fn main() -> Result<(), handoffd::Error> {
    let server = Builder::from_env()?.listen("grpc=127.0.0.1:7002")?;
    server.serve_with(async |life| {
        let router = Server::builder().add_service(GreeterServer::new(Greets(life.clone())));
        let connections = handoffd::tonic::incoming(&life, "grpc")?;
        let draining = life.draining_of("grpc")?;
        router.serve_with_incoming_shutdown(connections, draining).await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(())
}
