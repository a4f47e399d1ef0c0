//! `kubectl imagegen`: from the name of an ImageGen to a channel to one of its workers.
//!
//! ```text
//! kubeconfig ─cluster→ ImageGen ─imagegen(pure)→ TLS, token; EndpointSlices ─endpoints(pure)→ pod ─forward→ channel
//! ```

pub mod cluster;
pub mod endpoints;
mod error;
pub mod forward;
pub mod imagegen;

use serde_json::json;
use tokio_util::task::TaskTracker;

pub use self::error::Error;
use self::{cluster::Cluster, imagegen::ImageGen};
use crate::{
    args::{PluginCli, PluginCommand, PluginGenerate, PluginSecurity, PluginStatus},
    credentials::{self, Bearer, Trust},
    display::Display,
    error::Error as TopError,
    exit::Class,
    generate::generate,
    session::{Session, bounded},
    status, table,
};

/// Runs the plugin's command.
///
/// # Errors
/// Everything in [`TopError`]. A worker that answers but does not serve is no error but the exit code of
/// [`Class::Unavailable`].
pub async fn run(cli: PluginCli) -> Result<u8, TopError> {
    let PluginCli { namespace, context, kubeconfig, command } = cli;
    let connect = async || Cluster::connect(kubeconfig.as_deref(), context.as_deref(), namespace.clone()).await;
    match command {
        PluginCommand::Generate(args) => {
            let PluginGenerate { name, prompt, job, security } = *args;
            let open = async |display: &mut Display, tasks: &TaskTracker| {
                display.phase(&format!("Looking for a worker of {name}"));
                let cluster = connect().await?;
                let object = cluster.imagegen(&name).await?;
                open(cluster, object, &security, tasks).await
            };
            generate(&prompt, &job, open).await.map(|()| 0)
        }
        PluginCommand::Status(args) => {
            let limit = args.timeout;
            let work = async |tasks: &TaskTracker| {
                let cluster = connect().await?;
                match &args.name {
                    Some(name) => show_one(cluster, name, &args, tasks).await,
                    None => show_all(&cluster, &args).await.map(|()| 0),
                }
            };
            bounded(limit, work).await
        }
    }
}

/// Forwards to a ready worker of `object`, with what its spec says about TLS and tokens.
async fn open(
    cluster: Cluster,
    object: ImageGen,
    security: &PluginSecurity,
    tasks: &TaskTracker,
) -> Result<Session, TopError> {
    let mut bearer = Bearer::read(security.token_file.as_deref())?;
    if let Some(token) = object.token.as_ref().filter(|_| !bearer.is_some()) {
        let bytes =
            cluster.secret_value(&token.name, &token.key).await.map_err(|error| error.needed_for_token(token))?;
        let origin = format!("key {} of Secret {}", token.key, token.name);
        bearer = Bearer::from_text(&String::from_utf8_lossy(&bytes.unwrap_or_default()), &origin)?;
    }
    let trust = match &object.tls_secret {
        None => None,
        Some(secret) => {
            let ca_pem = match security.ca_file.as_deref() {
                Some(path) => Some(credentials::read(path)?),
                // A certificate of a public authority comes without ca.crt.
                None => cluster
                    .secret_value(secret, "ca.crt")
                    .await
                    .map_err(|error| error.needed_for_tls(secret))?
                    .filter(|pem| !pem.is_empty()),
            };
            let name = format!("{}.{}.svc", object.name, cluster.namespace);
            Some(Trust { ca_pem, server_name: Some(security.tls_server_name.clone().unwrap_or(name)) })
        }
    };
    forward::open(cluster, object, bearer, trust, tasks).await
}

async fn show_one(cluster: Cluster, name: &str, args: &PluginStatus, tasks: &TaskTracker) -> Result<u8, TopError> {
    let object = cluster.imagegen(name).await?;
    let (head, json_head) = (object.to_text(), object.to_json());
    // Conditions are worth showing whether or not a worker can be asked.
    let worker = match open(cluster, object, &args.security, tasks).await {
        Ok(session) => status::ask(&session).await.map(|status| (session.peer, status)),
        Err(error) => Err(error),
    };
    let code = match &worker {
        Ok((_, status)) if status.is_serving() => 0,
        Ok(_) => Class::Unavailable.code(),
        Err(error) => error.class().code(),
    };
    if args.json {
        let worker = match &worker {
            Ok((peer, status)) => status::to_json(peer, status),
            Err(error) => error.to_json(),
        };
        status::print(&json!({ "imagegen": json_head, "worker": worker }).to_string());
    } else {
        let worker = match &worker {
            Ok((peer, status)) => status::to_text(peer, status),
            Err(error) => format!("No worker was asked.\n{}", error.to_text()),
        };
        status::print(&format!("{head}\n{worker}"));
    }
    Ok(code)
}

async fn show_all(cluster: &Cluster, args: &PluginStatus) -> Result<(), TopError> {
    let objects = cluster.imagegens(args.all_namespaces).await?;
    if args.json {
        let items: Vec<_> = objects.iter().map(ImageGen::to_json).collect();
        status::print(&json!({ "items": items }).to_string());
    } else if objects.is_empty() {
        let place = if args.all_namespaces { "any namespace" } else { &cluster.namespace };
        eprintln!("There is no ImageGen in {place}.");
    } else {
        let rows: Vec<_> = objects.iter().map(ImageGen::row).collect();
        status::print(&table::columns(&imagegen::HEADER, &rows));
    }
    Ok(())
}
