//! kube-apiserver and etcd from the one binary that `make test-tools` builds.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

use super::{eventually, free_port};

/// May do everything.
pub(crate) const ADMIN: &str = "admin";
/// Has the rights of the operator's pod, once a test grants them.
pub(crate) const OPERATOR: &str = "operator";
/// Someone with rights in one namespace.
pub(crate) const TENANT: &str = "tenant";

/// A running API server, stopped when dropped.
pub(crate) struct ApiServer {
    dir: TempDir,
    etcd: Child,
    apiserver: Child,
    port: u16,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [&mut self.apiserver, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl ApiServer {
    /// Starts both and installs the CRD.
    pub(crate) async fn start() -> Self {
        let started = Instant::now();
        let hyperkube = hyperkube();
        // etcd waits for the disk at every write; memory makes it quick.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a temporary folder");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let users = [ADMIN, OPERATOR, TENANT].map(|user| {
            let group = if user == ADMIN { "\"system:masters\"" } else { "\"users\"" };
            format!("{user}-token,{user},{user},{group}\n")
        });
        fs::write(path("tokens.csv"), users.concat()).unwrap();
        let service_accounts = rcgen::KeyPair::generate().unwrap();
        fs::write(path("sa.key"), service_accounts.serialize_pem()).unwrap();
        fs::write(path("sa.pub"), service_accounts.public_key_pem()).unwrap();
        write_front_proxy(dir.path());

        let (client_port, peer_port, port) = (free_port(), free_port(), free_port());
        let (clients, peers) = (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = spawn(
            &hyperkube,
            "etcd",
            dir.path(),
            &[
                "--name=e".into(),
                format!("--data-dir={}", path("etcd")),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=e={peers}"),
                "--unsafe-no-fsync".into(),
            ],
        );
        let apiserver = spawn(
            &hyperkube,
            "kube-apiserver",
            dir.path(),
            &[
                format!("--etcd-servers={clients}"),
                "--bind-address=127.0.0.1".into(),
                "--advertise-address=127.0.0.1".into(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", path("certs")),
                format!("--token-auth-file={}", path("tokens.csv")),
                "--authorization-mode=RBAC".into(),
                "--service-cluster-ip-range=198.19.0.0/24".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={}", path("sa.pub")),
                format!("--service-account-signing-key-file={}", path("sa.key")),
                // What aggregated APIs need.
                format!("--requestheader-client-ca-file={}", path("front-proxy-ca.crt")),
                "--requestheader-allowed-names=front-proxy-client".into(),
                "--requestheader-username-headers=X-Remote-User".into(),
                "--requestheader-group-headers=X-Remote-Group".into(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
                format!("--proxy-client-cert-file={}", path("front-proxy-client.crt")),
                format!("--proxy-client-key-file={}", path("front-proxy-client.key")),
            ],
        );
        let mut server = Self { dir, etcd, apiserver, port };
        server.ready().await;
        server.install_crd().await;
        eprintln!("kube-apiserver is ready after {:.1} s", started.elapsed().as_secs_f64());
        server
    }

    async fn ready(&mut self) {
        let admin = self.client(ADMIN).await;
        let log = self.dir.path().join("kube-apiserver.log");
        eventually("kube-apiserver is ready", async || {
            if let Some(status) = self.apiserver.try_wait().map_err(|error| error.to_string())? {
                let log = fs::read_to_string(&log).unwrap_or_default();
                panic!("kube-apiserver ended ({status}):\n{}", tail(&log));
            }
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            admin.request_text(request).await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    }

    async fn install_crd(&self) {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client(ADMIN).await);
        let crd = imagegen_operator::crd::crd();
        crds.create(&PostParams::default(), &crd).await.expect("the API server accepts the CRD");
        eventually("the CRD is served", async || {
            let found = crds.get("imagegens.imagegen.dev").await.map_err(|error| error.to_string())?;
            let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
            let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
            established.then_some(()).ok_or_else(|| format!("{conditions:?}"))
        })
        .await;
    }

    /// A kubeconfig file for a user.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{user}.kubeconfig"));
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "insecure-skip-tls-verify": true,
            }}],
            "users": [{"name": "u", "user": {"token": format!("{user}-token")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&path, text.to_string()).expect("the temporary folder can be written");
        path
    }

    /// A client for a user.
    pub(crate) async fn client(&self, user: &str) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(user)).expect("our own kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("our own kubeconfig")).expect("a client")
    }

    /// A fresh namespace.
    pub(crate) async fn namespace(&self, name: &str) -> String {
        let api: Api<Namespace> = Api::all(self.client(ADMIN).await);
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        api.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await.unwrap();
        name.to_owned()
    }

    /// Replaces the CRD's schema of `spec`, and returns what it was.
    pub(crate) async fn exchange_spec_schema(&self, schema: serde_json::Value) -> serde_json::Value {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client(ADMIN).await);
        let mut crd = crds.get("imagegens.imagegen.dev").await.unwrap();
        let version = crd.spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let spec = version.and_then(|schema| schema.properties.as_mut()?.get_mut("spec")).unwrap();
        let before = serde_json::to_value(&*spec).unwrap();
        *spec = serde_json::from_value(schema).unwrap();
        crds.replace("imagegens.imagegen.dev", &PostParams::default(), &crd).await.unwrap();
        before
    }

    /// Starts kube-controller-manager with these of its controllers.
    pub(crate) fn controllers(&self, names: &[&str]) -> Controllers {
        let flags = [
            format!("--kubeconfig={}", self.kubeconfig(ADMIN).display()),
            format!("--controllers={}", names.join(",")),
            "--horizontal-pod-autoscaler-sync-period=1s".into(),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ];
        let log = self.dir.path().join("kube-controller-manager.log");
        Controllers { child: spawn(&hyperkube(), "kube-controller-manager", self.dir.path(), &flags), log }
    }

    /// What kubectl prints for the administrator, or its complaint.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = tokio::process::Command::new(hyperkube());
        command.arg0("kubectl").arg("--kubeconfig").arg(self.kubeconfig(ADMIN)).args(arguments);
        let output = command.output().await.expect("kubectl can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Where processes of a test may log.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }
}

/// A running kube-controller-manager, stopped when dropped.
pub(crate) struct Controllers {
    child: Child,
    log: PathBuf,
}

impl Drop for Controllers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), tail(&fs::read_to_string(&self.log).unwrap_or_default()));
        }
    }
}

/// An authority, and the certificate with which the API server vouches for the callers of aggregated APIs.
fn write_front_proxy(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "front-proxy-client");
    let key = KeyPair::generate().unwrap();
    let leaf = client.signed_by(&key, &issuer).unwrap().pem();
    let files = [
        ("front-proxy-ca.crt", pem),
        ("front-proxy-client.crt", leaf),
        ("front-proxy-client.key", key.serialize_pem()),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

fn spawn(hyperkube: &Path, name: &str, dir: &Path, args: &[String]) -> Child {
    let log = fs::File::create(dir.join(format!("{name}.log"))).expect("the temporary folder can be written");
    // The binary is the component by whose name it is called.
    let mut command = Command::new(hyperkube);
    command.arg0(name).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{} cannot be started: {error}", hyperkube.display()))
}

fn hyperkube() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = variable("IMAGEGEN_HYPERKUBE").unwrap_or_else(|| {
        let cache = variable("IMAGEGEN_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|home| home.join("imagegen")))
            .or_else(|| variable("HOME").map(|home| home.join(".cache/imagegen")));
        cache.unwrap_or_default().join("bin/hyperkube")
    });
    match fs::metadata(&path) {
        Ok(_) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => panic!(
            "{} is missing: run `make test-tools`, or name the binary in IMAGEGEN_HYPERKUBE. \
             These tests need a real kube-apiserver and are not skipped without one.",
            path.display()
        ),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
