use actix_web::{App, HttpServer, web};
use handoffd::actix::{CloseMiddleware, serve};
use handoffd::{Builder, Error};

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let announce = CloseMiddleware::new(&life);
        let app = move || {
            App::new().wrap(announce.clone()).route("/", web::get().to(|| async { "generation\n" }))
        };
        let actix = HttpServer::new(app).listen(life.tcp_listener("http")?)?;
        serve(&life, actix.disable_signals().run()).await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(())
}
