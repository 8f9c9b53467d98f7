use std::sync::Arc;

use axum::{Router, routing::get};
use handoffd::Builder;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Builder::from_env()?.listen("https=127.0.0.1:7443")?;
    let certificates =
        CertificateDer::pem_file_iter("certificate.pem")?.collect::<Result<_, _>>()?;
    let tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, PrivateKeyDer::from_pem_file("key.pem")?)?;
    let tls = TlsAcceptor::from(Arc::new(tls));
    server.serve_with(async |life| {
        let tls = tls.clone();
        let listener = life.acceptor("https")?.handshakes(move |stream| tls.accept(stream));
        let greeting = format!("generation {}\n", life.generation());
        let app = Router::new().route("/", get(|| async { greeting }));
        handoffd::axum::serve_on(&life, "https", listener, app).await
    })?;
    Ok(())
}
