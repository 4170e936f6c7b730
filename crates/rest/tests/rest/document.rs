//! The OpenAPI document and the table of roles describe the same routes.

use std::collections::BTreeSet;
use std::path::Path;

use lifeboat_rest::{ACCESS, openapi_json};
use serde_json::Value;

use crate::support::Scene;

fn document() -> Value {
    serde_json::from_str(&openapi_json()).unwrap()
}

/// Method and path of everything in the document.
fn documented() -> BTreeSet<(String, String)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let each = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    each.collect()
}

#[test]
fn the_document_that_is_checked_in_is_the_one_of_this_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, openapi_json()).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap();
    assert!(
        checked_in == openapi_json(),
        "docs/openapi.json is not what the program says: run the tests of lifeboat-rest once with UPDATE_OPENAPI=1"
    );
}

#[test]
fn every_route_has_one_row_in_the_table_of_roles_and_every_row_a_route() {
    let rows: Vec<(String, String)> = ACCESS
        .iter()
        .map(|rule| (rule.method.to_owned(), rule.path.to_owned()))
        .collect();
    let unique: BTreeSet<_> = rows.iter().cloned().collect();
    assert_eq!(unique.len(), rows.len(), "a row is there twice");
    assert_eq!(unique, documented());
}

#[test]
fn every_operation_has_an_id_of_its_own_a_summary_and_a_problem() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = BTreeSet::new();
    for (method, path) in documented() {
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(
            ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
            "{path}"
        );
        assert!(operation["summary"].is_string(), "{method} {path}");
        if path != "/v1/openapi.json" {
            let problem = &operation["responses"]["default"]["content"];
            assert!(
                problem["application/problem+json"].is_object(),
                "{method} {path}: {operation:#}"
            );
        }
    }
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.insert(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_document_is_served() {
    let scene = Scene::new();
    let answer = scene.get("/v1/openapi.json").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text, openapi_json());
    scene.stop().await;
}
