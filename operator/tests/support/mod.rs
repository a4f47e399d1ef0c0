//! A real kube-apiserver with etcd, and operators that run against it as processes. No kubelet and no controllers: what
//! they would write, tests write themselves.

pub(crate) mod apiserver;
pub(crate) mod node;
pub(crate) mod operator;

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

/// Long enough for a busy machine with two cores; a test that passes never waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `check` returns a value.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}, last seen: {reason}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A port that nothing listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
