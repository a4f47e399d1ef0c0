//! The operator as a process.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use super::{
    apiserver::{ApiServer, OPERATOR},
    eventually, free_port,
};

/// A running operator, killed when dropped.
pub(crate) struct Operator {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

impl Operator {
    /// Starts an operator that serves `namespace` and lives in it, and waits until its caches are synced.
    pub(crate) async fn start(server: &ApiServer, namespace: &str, pod: &str, flags: &[&str]) -> Self {
        let watch = format!("--watch-namespaces={namespace}");
        Self::start_wide(server, namespace, pod, &[&[watch.as_str()], flags].concat()).await
    }

    /// Starts an operator that serves all namespaces and lives in `namespace`.
    pub(crate) async fn start_wide(server: &ApiServer, namespace: &str, pod: &str, flags: &[&str]) -> Self {
        let port = free_port();
        let log = server.folder().join(format!("{namespace}-{pod}.log"));
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_imagegen-operator"))
            .arg("run")
            .args(["--worker-image", "registry.invalid/imagegen-worker:1", "--namespace", namespace, "--pod-name", pod])
            .args(["--http-listen", &format!("127.0.0.1:{port}")])
            .args(["--lease-duration=4s", "--lease-renew-deadline=3s", "--lease-retry=500ms"])
            .args(flags)
            .env("KUBECONFIG", server.kubeconfig(OPERATOR))
            .env("IMAGEGEN_LOG", "info,imagegen_operator=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut operator = Self { child, port, log };
        eventually("the operator is ready", async || {
            if let Some(status) = operator.child.try_wait().unwrap() {
                panic!("the operator ended ({status}):\n{}", fs::read_to_string(&operator.log).unwrap());
            }
            let (status, body) = operator.get("/readyz")?;
            if status == 200 { Ok(()) } else { Err(body) }
        })
        .await;
        operator
    }

    /// Waits until this operator is the one that writes.
    pub(crate) async fn leads(&self) {
        eventually("the operator leads", async || {
            let leader = self.metric("imagegen_operator_leader", &[])?;
            if leader == 1.0 { Ok(()) } else { Err(format!("leader {leader}")) }
        })
        .await;
    }

    /// Whether this operator is the one that writes.
    pub(crate) fn is_leader(&self) -> bool {
        self.metric("imagegen_operator_leader", &[]).is_ok_and(|leader| leader == 1.0)
    }

    /// Writes to the API server so far, the Lease's and the Events' left out, by resource.
    pub(crate) fn writes(&self) -> BTreeMap<String, u64> {
        let page = self.page().unwrap();
        let mut writes = BTreeMap::new();
        for line in page.lines().filter_map(|line| line.strip_prefix("imagegen_operator_api_requests_total")) {
            let label = |name: &str| line.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap();
            let (verb, resource) = (label("verb"), label("resource"));
            let is_write = ["create", "update", "patch", "delete"].contains(&verb);
            if is_write && !["leases", "events"].contains(&resource) {
                let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
                *writes.entry(resource.to_owned()).or_default() += value as u64;
            }
        }
        writes
    }

    /// Reconciles that ended so far.
    pub(crate) fn reconciles(&self) -> f64 {
        self.metric("imagegen_operator_reconcile_seconds_count", &[]).unwrap()
    }

    /// Sum over all series of a metric that carry `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, String> {
        let page = self.page()?;
        let series = page.lines().filter(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']));
            rest.is_some() && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
        });
        Ok(series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    fn page(&self) -> Result<String, String> {
        self.get("/metrics").map(|(_, body)| body)
    }

    fn get(&self, path: &str) -> Result<(u16, String), String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no HTTP status")?;
        Ok((status, body.to_owned()))
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.ended().await
    }

    /// Ends it without a chance to give anything back.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the operator ends", async || match child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err("it runs".to_owned()),
        })
        .await
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Resident memory, bytes.
    #[allow(dead_code, reason = "only the bench measures it")]
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}
