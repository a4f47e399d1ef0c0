//! Several operators, and what the one that leads keeps.

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::{World, good_spec};
use crate::support::{apiserver::ApiServer, eventually, operator::Operator};

pub(crate) async fn of_two_operators_one_leads_and_the_other_takes_over(server: Arc<ApiServer>) {
    let world = World::new(server, "two").await;
    let first = Operator::start(&world.server, "two", "op-a", &[]).await;
    first.leads().await;
    let second = Operator::start(&world.server, "two", "op-b", &[]).await;
    assert!(!second.is_leader());
    world.create_imagegen("one", good_spec()).await;
    world.until_children("one").await;
    assert_eq!(second.writes().values().sum::<u64>(), 0, "only the leader writes");

    // A leader that dies keeps the Lease until it runs out.
    first.kill();
    second.leads().await;
    let lease = world.api::<Lease>().get("imagegen-operator").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity.as_deref(), Some("op-b"));
    assert_eq!(lease.lease_transitions, Some(1));
    world.create_imagegen("two", good_spec()).await;
    world.until_children("two").await;

    // One that ends in peace gives it back, so the next one need not wait for the lease to run out (4 s here).
    let third = Operator::start(&world.server, "two", "op-c", &[]).await;
    assert!(second.terminate().await.success());
    let handed_over = Instant::now();
    third.leads().await;
    assert!(handed_over.elapsed().as_secs_f64() < 3.5, "{:?}", handed_over.elapsed());
    world.create_imagegen("three", good_spec()).await;
    world.until_children("three").await;
}

pub(crate) async fn a_leader_that_lost_its_lease_ends(server: Arc<ApiServer>) {
    let world = World::new(server, "stolen").await;
    let mut leader = Operator::start(&world.server, "stolen", "op-a", &[]).await;
    leader.leads().await;
    let follower = Operator::start(&world.server, "stolen", "op-b", &[]).await;

    let stolen = Patch::Merge(json!({"spec": {"holderIdentity": "op-z"}}));
    world.api::<Lease>().patch("imagegen-operator", &PatchParams::default(), &stolen).await.unwrap();
    assert!(!leader.ended().await.success(), "what it writes from here on could collide");
    assert!(leader.log().contains("leadership lost"), "{}", leader.log());
    // Nobody renews for op-z, so its Lease runs out.
    follower.leads().await;
    world.create_imagegen("turbo", good_spec()).await;
    world.until_children("turbo").await;
}

pub(crate) async fn a_lost_authority_comes_back(server: Arc<ApiServer>) {
    let world = World::new(server, "authority").await;
    let first = Operator::start(&world.server, "authority", "op-a", &[]).await;
    world.create_imagegen("turbo", good_spec()).await;
    world.until_children("turbo").await;
    let leaf = |secret: &Secret| secret.data.as_ref().unwrap()["tls.crt"].clone();
    let before = leaf(&world.api::<Secret>().get("turbo-admin-tls").await.unwrap());
    assert!(first.terminate().await.success());

    // Nobody has the key any more: a new authority is made, and every worker gets a certificate of it.
    world.api::<Secret>().delete("imagegen-operator-ca", &DeleteParams::default()).await.unwrap();
    let second = Operator::start(&world.server, "authority", "op-b", &[]).await;
    let after = world.until::<Secret>("turbo-admin-tls", "signed anew", |secret| leaf(secret) != before).await;
    eventually("the operator's own certificate follows", async || {
        let authority = world.api::<Secret>().get("imagegen-operator-ca").await.map_err(|error| error.to_string())?;
        let client = world.api::<Secret>().get("imagegen-operator-client").await.map_err(|error| error.to_string())?;
        let bundle = |secret: &Secret| secret.data.as_ref().unwrap()["ca.crt"].clone();
        let same = bundle(&client) == bundle(&authority) && bundle(&after) == bundle(&authority);
        if same { Ok(()) } else { Err("the bundles differ".to_owned()) }
    })
    .await;
    drop(second);
}
