//! Reads from the API server.

use std::path::Path;

use k8s_openapi::api::{
    core::v1::{Pod, Secret},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};

use super::{Error, endpoints, endpoints::Target, imagegen::ImageGen};

/// A cluster and a namespace in it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Where names are looked up.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does; connects when something is read.
    ///
    /// # Errors
    /// [`Error::Kubeconfig`].
    pub async fn connect(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: Option<String>,
    ) -> Result<Self, Error> {
        let invalid = |source: Box<dyn std::error::Error + Send + Sync>| Error::Kubeconfig {
            path: kubeconfig.map(Path::to_owned),
            source,
        };
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let config = match (kubeconfig, context) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path).map_err(|error| invalid(error.into()))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| invalid(error.into()))?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|error| invalid(error.into()))?,
            (None, None) => Config::infer().await.map_err(|error| invalid(error.into()))?,
        };
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| invalid(error.into()))?;
        Ok(Self { client, namespace })
    }

    /// The ImageGen of that name.
    ///
    /// # Errors
    /// [`Error::NoSuchImageGen`] with the names of those that exist, [`Error::NotInstalled`], or a failed read.
    pub async fn imagegen(&self, name: &str) -> Result<ImageGen, Error> {
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource());
        let action = format!("read ImageGen {}/{name}", self.namespace);
        match api.get(name).await.map_err(|error| failed(action, error)) {
            Ok(object) => Ok(ImageGen::from(&object)),
            Err(Error::Api { code: 404, .. }) => Err(Error::NoSuchImageGen {
                name: name.to_owned(),
                namespace: self.namespace.clone(),
                existing: self.imagegens(false).await?.into_iter().map(|found| found.name).collect(),
            }),
            Err(error) => Err(error),
        }
    }

    /// All ImageGens of the namespace, or of the cluster.
    ///
    /// # Errors
    /// [`Error::NotInstalled`] or a failed read.
    pub async fn imagegens(&self, all_namespaces: bool) -> Result<Vec<ImageGen>, Error> {
        let api = if all_namespaces {
            Api::<DynamicObject>::all_with(self.client.clone(), &resource())
        } else {
            Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource())
        };
        match api.list(&ListParams::default()).await.map_err(|error| failed("list ImageGens".to_owned(), error)) {
            Ok(list) => Ok(list.items.iter().map(ImageGen::from).collect()),
            Err(Error::Api { code: 404, .. }) => Err(Error::NotInstalled),
            Err(error) => Err(error),
        }
    }

    /// The value of a key of a Secret; `None` when the Secret lacks the key.
    ///
    /// # Errors
    /// A failed read.
    pub async fn secret_value(&self, name: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let secret =
            api.get(name).await.map_err(|error| failed(format!("read Secret {}/{name}", self.namespace), error))?;
        Ok(secret.data.unwrap_or_default().remove(key).map(|value| value.0))
    }

    /// The ready pods behind the ImageGen's Service.
    ///
    /// # Errors
    /// [`Error::NotReady`] with the ImageGen's own reason, [`Error::NoPort`], or a failed read.
    pub async fn targets(&self, object: &ImageGen) -> Result<Vec<Target>, Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &self.namespace);
        let selector = format!("kubernetes.io/service-name={}", object.name);
        let slices = api
            .list(&ListParams::default().labels(&selector))
            .await
            .map_err(|error| failed(format!("list the endpoints of Service {}", object.name), error))?;
        endpoints::targets(&slices.items).map_err(|no_target| match no_target {
            endpoints::NoTarget::NotReady => {
                Error::NotReady { name: object.name.clone(), condition: object.why_not_ready() }
            }
            endpoints::NoTarget::NoPort => Error::NoPort(object.name.clone()),
        })
    }

    /// Opens a stream to a port of a pod.
    ///
    /// # Errors
    /// A refused or failed upgrade.
    pub async fn forward(&self, target: &Target) -> Result<kube::api::Portforwarder, Error> {
        let namespace = target.namespace.as_deref().unwrap_or(&self.namespace);
        Api::<Pod>::namespaced(self.client.clone(), namespace)
            .portforward(&target.pod, &[target.port])
            .await
            .map_err(|error| failed(format!("forward port {} of pod {namespace}/{}", target.port, target.pod), error))
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("imagegen.dev", "v1alpha1", "ImageGen"), "imagegens")
}

fn failed(action: String, error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => Error::Api { action, message: status.message.clone(), code: status.code },
        kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(status)) => Error::Api {
            action,
            message: format!("the API server answered {status} instead of opening a stream"),
            code: status.as_u16(),
        },
        error => Error::Unreachable { action, source: Box::new(error) },
    }
}
