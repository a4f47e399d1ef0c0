//! What the operator puts into a worker's environment is what the worker reads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly too")]

use std::{fs, path::PathBuf};

use clap::{CommandFactory as _, Parser as _};
use imagegen_operator::{
    crd::{ImageGen, ImageGenSpec},
    reconcile::{
        build::build,
        types::{ClaimFact, Facts, OperatorSettings},
        validate::validate,
    },
};
use imagegen_worker::cli::Cli;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "{folder} has no YAML file");
    files
}

/// The worker's command line that means the same as the ConfigMap made for `imagegen`.
fn arguments(imagegen: &ImageGen) -> Vec<String> {
    let facts = Facts { claim: ClaimFact::Found { access_modes: vec!["ReadWriteMany".into()] }, ..Facts::default() };
    let operator = OperatorSettings {
        worker_image: "registry.example/imagegen-worker:1".into(),
        operator_namespace: "imagegen-system".into(),
        allow_host_path: true,
        allow_privileged_pods: false,
        metrics_api: true,
    };
    let validated = validate(imagegen, &facts, &operator).expect("the spec is accepted");
    let data = build(&validated).config_map.data.unwrap();

    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    let mut arguments = vec!["imagegen-worker".to_owned(), "serve".to_owned()];
    for (variable, value) in data {
        let flag = serve
            .get_arguments()
            .find(|argument| argument.get_env().is_some_and(|env| env == variable.as_str()))
            .unwrap_or_else(|| panic!("the worker does not read {variable}"));
        let name = flag.get_long().expect("every flag has a long name");
        if flag.get_action().takes_values() {
            arguments.push(format!("--{name}={value}"));
        } else {
            assert_eq!(value, "true", "{variable} is a switch");
            arguments.push(format!("--{name}"));
        }
    }
    arguments
}

fn assert_the_worker_understands(imagegen: &ImageGen, file: &std::path::Path) {
    let arguments = arguments(imagegen);
    if let Err(error) = Cli::try_parse_from(&arguments) {
        panic!("{}: {error}\n{arguments:#?}", file.display());
    }
}

#[test]
fn the_worker_understands_what_the_examples_become() {
    for file in yaml_files("deploy/examples") {
        let text = fs::read_to_string(&file).unwrap();
        let mut seen = 0;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value: serde_yaml::Value = serde::Deserialize::deserialize(document).unwrap();
            if value["kind"].as_str() == Some("ImageGen") {
                let mut imagegen: ImageGen = serde_yaml::from_value(value).unwrap();
                imagegen.metadata.namespace = Some("art".into());
                imagegen.metadata.uid = Some("1".into());
                assert_the_worker_understands(&imagegen, &file);
                seen += 1;
            }
        }
        assert!(seen > 0, "{} has no ImageGen", file.display());
    }
}

#[test]
fn the_worker_understands_what_every_tested_spec_becomes() {
    for file in yaml_files("operator/tests/build_cases") {
        let spec: ImageGenSpec = serde_yaml::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let mut imagegen = ImageGen::new("fleet", spec);
        imagegen.metadata.namespace = Some("art".into());
        imagegen.metadata.uid = Some("1".into());
        assert_the_worker_understands(&imagegen, &file);
    }
}
