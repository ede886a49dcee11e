use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::tls::{Authority, client};
use super::*;

/// Switches protocols, and then sends back what it gets.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).await.expect("a line") == 0 {
            return;
        }
    }
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut bytes = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        stream.write_all(&bytes[..length]).await.expect("written");
    }
}

#[tokio::test]
async fn an_upgrade_has_a_connection_of_its_own_with_the_same_credentials() {
    let authority = Authority::new();
    let identity = authority.issue("client");
    let server = Server::with(Some(authority.server("127.0.0.1")), 100).await;
    let mut settings = settings(&[&server]);
    settings.tls = Some(client(&authority, &identity, None));
    settings.bearer_token = Some(BearerToken::new("secret").expect("a token"));
    settings.health.interval = Duration::ZERO;
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    let mut upgrade = endpoint.open_upgrade::<Empty<Bytes>>().await.expect("a connection");
    assert_eq!(upstream.status()[0].upgrades, 1);
    let mut request = http::Request::get("/api/v1/namespaces/a/pods/b/exec")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Empty::new())
        .expect("a request");
    endpoint.authorize(request.headers_mut());
    assert_eq!(request.headers()["authorization"], "Bearer secret");
    let response = upgrade.sender.send_request(request).await.expect("a response");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(server.control.certificate.lock().as_ref(), Some(&identity.der));
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    stream.write_all(b"hello").await.expect("written");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("read");
    assert_eq!(&echo, b"hello");
    // An update that removes the endpoint does not cut it.
    upstream.update(UpstreamSettings::new("test"));
    stream.write_all(b"again").await.expect("written");
    stream.read_exact(&mut echo).await.expect("read");
    assert_eq!(&echo, b"again");
    drop((stream, upgrade));
    assert_eq!(endpoint.status().upgrades, 0);
    until("its connection is closed", || server.open() == 0).await;
}
