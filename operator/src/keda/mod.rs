//! KEDA's external scaler: the same total that the metrics API serves, for whoever scales ImageGens with KEDA.

pub mod answer;
pub mod server;
