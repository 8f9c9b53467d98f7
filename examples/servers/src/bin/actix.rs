use actix_web::dev::Service;
use actix_web::http::ConnectionType;
use actix_web::{App, HttpServer, web};
use handoffd::Builder;

fn main() -> Result<(), handoffd::Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let (generation, watched) = (life.generation(), life.clone());
        let actix = HttpServer::new(move || {
            let life = watched.clone();
            App::new()
                .wrap_fn(move |request, service| {
                    let (reply, life) = (service.call(request), life.clone());
                    async move {
                        let mut reply = reply.await?;
                        if life.has_retired() {
                            // The last reply on this connection.
                            reply.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                        }
                        Ok(reply)
                    }
                })
                .route("/", web::get().to(move || async move { format!("generation {generation}\n") }))
        });
        let actix = actix.listen(life.tcp_listener("http")?)?.disable_signals().run();
        life.ready();
        let (stop, life) = (actix.handle(), life);
        tokio::spawn(async move {
            life.retired().await;
            stop.pause().await;
            life.closing().await;
            stop.stop(true).await;
        });
        actix.await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(())
}
