//! An API server with fixed objects, which forwards ports of pods to a worker of the test.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use futures::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

const PROTOCOL: &str = "v4.channel.k8s.io";

/// The API server. Everything it has not been told of is not found.
pub struct Cluster {
    address: SocketAddr,
    state: Arc<State>,
    _runtime: Runtime,
}

#[derive(Default)]
struct State {
    objects: Mutex<HashMap<String, (StatusCode, Value)>>,
    pods: Mutex<HashMap<String, SocketAddr>>,
    forwarded: Mutex<Vec<String>>,
}

impl Cluster {
    pub fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let state = Arc::new(State::default());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                let service = service_fn(move |request| {
                    let state = Arc::clone(&state);
                    async move { Ok::<_, Infallible>(answer(&state, request)) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
            }
        });
        Self { address, state, _runtime: runtime }
    }

    /// Answers GET of `path` with `value`.
    pub fn has(&self, path: &str, value: Value) {
        self.state.objects.lock().unwrap().insert(path.to_owned(), (StatusCode::OK, value));
    }

    /// Answers GET of `path` as the API server does where RBAC says no.
    pub fn forbids(&self, path: &str) {
        let message = "User \"jane\" cannot do this";
        self.state
            .objects
            .lock()
            .unwrap()
            .insert(path.to_owned(), failure(StatusCode::FORBIDDEN, "Forbidden", message));
    }

    /// Forwards port 8500 of pod `art/NAME` to `worker`.
    pub fn has_pod(&self, name: &str, worker: SocketAddr) {
        let path = format!("/api/v1/namespaces/art/pods/{name}/portforward");
        self.state.pods.lock().unwrap().insert(path, worker);
    }

    /// The ImageGen `art/turbo` with this spec.service, Ready or not, and its ready pods.
    pub fn has_turbo(&self, service: &Value, ready: bool, pods: &[&str]) {
        let condition = if ready {
            json!({ "type": "Ready", "status": "True", "reason": "WorkersReady", "message": "1 of 1 workers is ready" })
        } else {
            json!({ "type": "Ready", "status": "False", "reason": "ModelLoading", "message": "40 % of the model is loaded" })
        };
        let object = json!({
            "apiVersion": "imagegen.dev/v1alpha1", "kind": "ImageGen",
            "metadata": { "name": "turbo", "namespace": "art" },
            "spec": { "service": service },
            "status": { "readyReplicas": pods.len(), "desiredReplicas": 1, "conditions": [condition] },
        });
        let list = json!({
            "apiVersion": "imagegen.dev/v1alpha1", "kind": "ImageGenList", "metadata": {}, "items": [object],
        });
        self.has("/apis/imagegen.dev/v1alpha1/namespaces/art/imagegens/turbo", object);
        self.has("/apis/imagegen.dev/v1alpha1/namespaces/art/imagegens", list);
        let endpoints: Vec<_> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": ["10.0.0.1"], "conditions": { "ready": true },
                    "targetRef": { "kind": "Pod", "name": pod, "namespace": "art" },
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": "turbo-x" },
            "addressType": "IPv4", "ports": [{ "name": "grpc", "port": 8500 }], "endpoints": endpoints,
        });
        let slices = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {}, "items": [slice],
        });
        self.has("/apis/discovery.k8s.io/v1/namespaces/art/endpointslices", slices);
    }

    /// Paths of the port forwards so far.
    pub fn forwarded(&self) -> Vec<String> {
        self.state.forwarded.lock().unwrap().clone()
    }

    /// Writes a kubeconfig for this cluster, whose context has namespace `art`, to `folder`/kubeconfig.
    pub fn write_kubeconfig(&self, folder: &Path) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \
             'http://{}'}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u, \
             namespace: art}}}}]\n",
            self.address
        );
        std::fs::write(folder.join("kubeconfig"), text).unwrap();
    }
}

fn failure(code: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, status)
}

fn answer(state: &State, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let worker = state.pods.lock().unwrap().get(&path).copied();
    if let Some(worker) = worker {
        state.forwarded.lock().unwrap().push(path);
        let accept = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
        tokio::spawn(forward(hyper::upgrade::on(&mut request), worker));
        return Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::UPGRADE, "websocket")
            .header(header::CONNECTION, "Upgrade")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
            .body(Full::default())
            .unwrap();
    }
    let known = state.objects.lock().unwrap().get(&path).cloned().filter(|_| request.method() == Method::GET);
    let (code, value) =
        known.unwrap_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound", &format!("{path} not found")));
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(value.to_string()))
        .unwrap()
}

/// Channel 0 carries the port's bytes, channel 1 its errors; both begin with the port's number.
async fn forward(upgrade: OnUpgrade, worker: SocketAddr) {
    let upgraded: Upgraded = upgrade.await.unwrap();
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (mut to_client, mut from_client) = socket.split();
    let [low, high] = 8500u16.to_le_bytes();
    for channel in [0, 1] {
        to_client.send(Message::binary(vec![channel, low, high])).await.unwrap();
    }
    let Ok(stream) = TcpStream::connect(worker).await else {
        let text = b"\x01failed to connect to localhost:8500 inside the pod: connection refused";
        let _ = to_client.send(Message::binary(text.to_vec())).await;
        while let Some(Ok(_)) = from_client.next().await {}
        return;
    };
    let (mut from_worker, mut to_worker) = stream.into_split();
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            if let Message::Binary(bytes) = message
                && bytes.first() == Some(&0)
            {
                to_worker.write_all(&bytes[1..]).await.unwrap();
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_worker.read(&mut buffer[1..]).await {
            to_client.send(Message::binary(buffer[..=count].to_vec())).await.unwrap();
        }
        let _ = to_client.close().await;
    };
    tokio::select! { () = up => {}, () = down => {} }
}
