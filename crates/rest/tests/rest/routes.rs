//! Every route: what the service is asked, and how the answer looks.

use lifeboat_model::contract::ReturnCode;
use lifeboat_rest::status_of;
use serde_json::{Value, json};

use crate::support::Scene;

/// Requests that change something, with what the service must be asked.
fn operations() -> Vec<(&'static str, &'static str, Option<Value>, &'static str)> {
    let settings = json!({"recovery_history": 3, "bandwidth_limit": {"bytes_per_second": 5000}});
    let settings_text = r#"{"recovery_history":3,"bandwidth_limit":{"bytes_per_second":5000}}"#;
    let enable = json!({"recovery_connection_point": "b:8444", "recovery_host_name": "b.example", "settings": settings});
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    vec![
        ("POST", "start", None, "StartVm"),
        ("POST", "stop", None, "StopVm { how: ShutDown }"),
        (
            "POST",
            "stop",
            Some(json!({"how": "power_off"})),
            "StopVm { how: PowerOff }",
        ),
        (
            "POST",
            "replication",
            Some(enable),
            leak(format!(
                "EnableReplication b:8444 Some(\"b.example\") {settings_text}"
            )),
        ),
        (
            "POST",
            "replication",
            Some(json!({
                "recovery_connection_point": "b:8444",
                "kept_replica": "000102030405060708090a0b0c0d0e0f",
            })),
            "EnableReplication b:8444 None {} onto 000102030405060708090a0b0c0d0e0f",
        ),
        (
            "PATCH",
            "replication",
            Some(settings),
            leak(format!("ModifySettings {settings_text}")),
        ),
        (
            "PATCH",
            "replication",
            Some(json!({"included_disks": []})),
            r#"ModifySettings {"included_disks":[]}"#,
        ),
        ("DELETE", "replication", None, "RemoveReplication"),
        (
            "POST",
            "replication/start",
            None,
            "StartReplication { kind: NetworkTransfer, at: None }",
        ),
        (
            "POST",
            "replication/start",
            Some(json!({"initial_replication_type": 3, "start_time": "1970-01-01T00:00:01Z"})),
            "StartReplication { kind: SeededNetworkTransfer, at: Some(Timestamp(1000000)) }",
        ),
        (
            "POST",
            "replication/cancel-initial",
            None,
            "CancelInitialReplication",
        ),
        ("POST", "replication/suspend", Some(json!({})), "Suspend"),
        ("POST", "replication/resume", None, "Resume"),
        (
            "POST",
            "replication/resync",
            None,
            "Resynchronize { at: None }",
        ),
        (
            "POST",
            "replication/resync",
            Some(json!({"start_time": "1970-01-01T00:00:02.5Z"})),
            "Resynchronize { at: Some(Timestamp(2500000)) }",
        ),
        (
            "POST",
            "replication/cancel-resync",
            None,
            "CancelResynchronize",
        ),
        (
            "POST",
            "replication/reverse",
            None,
            "ReverseReplication None {}",
        ),
        (
            "POST",
            "replication/reverse",
            Some(json!({"recovery_connection_point": "a:1", "settings": {"recovery_history": 0}})),
            r#"ReverseReplication Some("a:1") {"recovery_history":0}"#,
        ),
        ("POST", "replication/now", None, "ReplicateNow"),
        (
            "POST",
            "failover/test",
            None,
            "TestFailover { point: None }",
        ),
        (
            "POST",
            "failover/test",
            Some(json!({"point": 9})),
            "TestFailover { point: Some(Sequence(9)) }",
        ),
        ("POST", "failover/test-end", None, "EndTestFailover"),
        ("POST", "failover/prepare", None, "PreparePlannedFailover"),
        (
            "POST",
            "failover/cancel-prepare",
            None,
            "CancelPlannedFailover { how: Checked }",
        ),
        (
            "POST",
            "failover/cancel-prepare",
            Some(json!({"force": true})),
            "CancelPlannedFailover { how: Forced }",
        ),
        (
            "POST",
            "failover/survivor",
            Some(json!({"survivor": "this_host"})),
            "NameSurvivor(ThisHost)",
        ),
        (
            "POST",
            "failover/survivor",
            Some(json!({"survivor": "other_host"})),
            "NameSurvivor(OtherHost)",
        ),
        (
            "POST",
            "failover/start",
            None,
            "InitiateFailover { point: None, how: Checked }",
        ),
        (
            "POST",
            "failover/start",
            Some(json!({"point": 12, "force": true})),
            "InitiateFailover { point: Some(Sequence(12)), how: Forced }",
        ),
        ("POST", "failover/revert", None, "RevertFailover"),
        ("POST", "failover/commit", None, "CommitFailover"),
        ("POST", "points", None, "MakePoint"),
        (
            "DELETE",
            "points/12",
            None,
            "RemovePoint { point: Sequence(12) }",
        ),
        (
            "POST",
            "points/12/verify",
            None,
            "VerifyPoint { point: Some(Sequence(12)) }",
        ),
        (
            "POST",
            "points/newest/verify",
            None,
            "VerifyPoint { point: None }",
        ),
        ("POST", "statistics/reset", None, "ResetStatistics"),
    ]
}

#[tokio::test]
async fn every_operation_reaches_the_service_as_what_it_says() {
    let scene = Scene::new();
    for (method, path, body, call) in operations() {
        let answer = scene
            .ask(method, &format!("/v1/vms/web1/{path}"), body)
            .await;
        assert_eq!(answer.status, 204, "{method} {path}: {answer:?}");
        assert_eq!(answer.text, "");
        assert_eq!(scene.fake.calls(), [call], "{method} {path}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn an_operation_that_goes_on_is_answered_with_its_job() {
    let scene = Scene::new();
    scene.fake.start_jobs();
    for (method, path, body, _) in operations() {
        let answer = scene
            .ask(method, &format!("/v1/vms/web1/{path}"), body)
            .await;
        assert_eq!(answer.status, 202, "{method} {path}: {answer:?}");
        let location = format!("/v1/jobs/{}", "77".repeat(16));
        assert_eq!(answer.location.as_deref(), Some(location.as_str()));
        assert_eq!(answer.json(), scene.get(&location).await.json());
    }
    scene.stop().await;
}

#[tokio::test]
async fn changes_that_are_done_at_once_reach_the_service() {
    let scene = Scene::new();
    let entry = json!({
        "allowed_primary_host_system": "*.Example.com",
        "trust_group": "g",
        "replica_storage_location": "/srv/r",
    });
    for (method, path, body, status, call) in [
        (
            "PATCH",
            "/v1/host/settings",
            Some(json!({"recovery_server_enabled": true, "allowed_authentication_type": 2})),
            204,
            r#"modify_service_settings {"recovery_server_enabled":true,"allowed_authentication_type":"certificate"}"#,
        ),
        (
            "POST",
            "/v1/vms",
            Some(
                json!({"element_name": "db", "memory_mib": 512, "processors": 2,
                "disks": [{"disk": "vda", "size": 1024}, {"disk": "vdb", "image": "/srv/b.raw"}]}),
            ),
            201,
            r#"define_vm NewVm { id: None, name: "db", memory_mib: 512, processors: 2, disks: [NewVmDisk { id: DiskId(vda), size: Some(DiskSize(1024)), image: None }, NewVmDisk { id: DiskId(vdb), size: None, image: Some("/srv/b.raw") }] }"#,
        ),
        (
            "POST",
            "/v1/vms",
            Some(
                json!({"name": "000102030405060708090a0b0c0d0e0f", "element_name": "db",
                "memory_mib": 512, "processors": 2, "disks": []}),
            ),
            201,
            r#"define_vm NewVm { id: Some(VmId(000102030405060708090a0b0c0d0e0f)), name: "db", memory_mib: 512, processors: 2, disks: [] }"#,
        ),
        ("DELETE", "/v1/vms/web1", None, 204, "undefine_vm"),
        (
            "POST",
            "/v1/authorization-entries",
            Some(entry.clone()),
            204,
            "add_authorization_entry *.example.com",
        ),
        (
            "PUT",
            "/v1/authorization-entries/%2A.example.COM",
            Some(entry),
            204,
            "modify_authorization_entry *.example.com",
        ),
        (
            "DELETE",
            "/v1/authorization-entries/*",
            None,
            204,
            "remove_authorization_entry *",
        ),
        (
            "POST",
            "/v1/test-connection",
            Some(json!({"recovery_connection_point": "b:8444"})),
            200,
            "test_connection b:8444",
        ),
        (
            "POST",
            "/v1/jobs/77777777777777777777777777777777/cancel",
            None,
            204,
            "cancel_job",
        ),
    ] {
        let answer = scene.ask(method, path, body).await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {answer:?}"
        );
        assert_eq!(scene.fake.calls(), [call], "{method} {path}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn questions_reach_the_service_with_their_limits() {
    let scene = Scene::new();
    for (path, call) in [
        ("/v1/host", "host"),
        ("/v1/host/settings", "host"),
        ("/v1/vms", "vms"),
        ("/v1/vms/web1", r#"vm Name("web1")"#),
        (
            "/v1/vms/11111111-1111-1111-1111-111111111111/replication",
            "vm Id(VmId(11111111111111111111111111111111))",
        ),
        ("/v1/vms/web1/points", "points"),
        ("/v1/vms/web1/health", "health"),
        ("/v1/vms/web1/check", "check"),
        ("/v1/vms/web1/statistics", "statistics"),
        ("/v1/jobs", "jobs JobFilter { vm: None, which: All }"),
        (
            "/v1/jobs?running=true&vm=11111111111111111111111111111111",
            "jobs JobFilter { vm: Some(VmId(11111111111111111111111111111111)), which: Running }",
        ),
        ("/v1/jobs/77777777777777777777777777777777", "job"),
        ("/v1/events", "events 0 100"),
        ("/v1/events?since=5&limit=7", "events 5 7"),
        ("/v1/audit", "audit 100"),
        ("/v1/audit?limit=1000", "audit 1000"),
        ("/v1/authorization-entries", "authorization_entries"),
    ] {
        let answer = scene.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(
            answer.content_type.as_deref(),
            Some("application/json"),
            "{path}"
        );
        answer.json();
        assert_eq!(scene.fake.calls(), [call], "{path}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn without_a_number_the_newest_events_are_given() {
    let scene = Scene::new();
    for _ in 0..10 {
        scene.fake.happens("state_changed");
    }
    let ids = async |path: &str| -> Vec<u64> {
        let events = scene.get(path).await.json();
        let events = events.as_array().unwrap().iter();
        events.map(|event| event["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(ids("/v1/events?limit=3").await, [8, 9, 10]);
    assert_eq!(ids("/v1/events?since=0&limit=3").await, [1, 2, 3]);
    assert_eq!(ids("/v1/events").await.len(), 10);
    scene.stop().await;
}

#[tokio::test]
async fn every_return_code_is_told_with_its_status_and_the_services_own_words() {
    let scene = Scene::new();
    for &code in ReturnCode::ALL {
        if code.number() < 32_768 {
            continue;
        }
        scene
            .fake
            .reject(code, "it was not to be", "try something else");
        for (method, path) in [
            ("GET", "/v1/vms"),
            ("GET", "/v1/vms/web1/health"),
            ("POST", "/v1/vms/web1/failover/start"),
            ("DELETE", "/v1/authorization-entries/*"),
        ] {
            let answer = scene.ask(method, path, None).await;
            let problem = answer.problem(status_of(code).as_u16());
            assert_eq!(problem["return_code"], code.number());
            assert_eq!(problem["return_code_text"], code.label());
            assert_eq!(problem["what"], "it was not to be");
            assert_eq!(problem["remedy"], "try something else");
        }
    }
    scene.stop().await;
}

#[tokio::test]
async fn a_vm_as_it_is_shown() {
    let scene = Scene::new();
    let shown = scene.get("/v1/vms/web1").await.json();
    let expected: Value = serde_json::from_str(include_str!("golden/vm.json")).unwrap();
    assert_eq!(shown, expected, "{shown:#}");
    scene.stop().await;
}

#[tokio::test]
async fn everything_else_as_it_is_shown() {
    let scene = Scene::new();
    scene.fake.happens("state_changed");
    let mut shown = serde_json::Map::new();
    for path in [
        "/v1/host",
        "/v1/vms/web1/points",
        "/v1/vms/web1/health",
        "/v1/vms/web1/check",
        "/v1/vms/web1/statistics",
        "/v1/jobs",
        "/v1/events",
        "/v1/audit",
        "/v1/authorization-entries",
        "/v1/jobs/00000000000000000000000000000000",
    ] {
        shown.insert(path.to_owned(), scene.get(path).await.json());
    }
    let shown = Value::from(shown);
    let expected: Value = serde_json::from_str(include_str!("golden/shapes.json")).unwrap();
    assert_eq!(shown, expected, "{shown:#}");
    scene.stop().await;
}
