//! Wire types of ImageGen. The `.proto` files beside this crate are the documentation of every field.

/// Package `imagegen.v1`: `ImageService` for users, `AdminService` for the operator.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("imagegen.v1");
}

/// Package `externalscaler`: KEDA's interface to external scalers.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// Descriptors of the services in package `imagegen.v1`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Name of the HTTP/2 header that carries a bearer token.
pub const AUTHORIZATION: &str = "authorization";
