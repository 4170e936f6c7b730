use super::*;

fn mac(last: u8) -> MacAddress {
    MacAddress::from_bytes([0x52, 0x54, 0, 0, 0, last]).unwrap()
}

fn failover() -> FailoverNetwork {
    FailoverNetwork {
        protocol: IpProtocol::Ipv4,
        ipv4: Ipv4Source::Static,
        addresses: vec![FailoverAddress {
            address: "192.0.2.7".parse().unwrap(),
            prefix: 24,
        }],
        gateways: vec!["192.0.2.1".parse().unwrap()],
        dns_servers: vec!["192.0.2.2".parse().unwrap()],
    }
}

fn settings() -> VmSettings {
    VmSettings {
        format: FORMAT,
        vm: VmId::from_bytes([0xab; 16]),
        name: "mail \"Büro\"".to_owned(),
        memory_mib: 4096,
        processors: 2,
        firmware: Firmware::UefiSecureBoot,
        adapters: vec![NetworkAdapter {
            mac: mac(1),
            network: "lan".to_owned(),
            failover: Some(failover()),
        }],
        disks: vec![DiskSettings {
            id: "sda".parse().unwrap(),
            size: DiskSize::try_from(1 << 30).unwrap(),
            bus: DiskBus::Virtio,
        }],
    }
}

const GOLDEN: &str = r#"{"format":1,"vm":"abababababababababababababababab","name":"mail \"Büro\"","memory_mib":4096,"processors":2,"firmware":"uefi_secure_boot","adapters":[{"mac":"52:54:00:00:00:01","network":"lan","failover":{"protocol":"ipv4","ipv4":"static","addresses":[{"address":"192.0.2.7","prefix":24}],"gateways":["192.0.2.1"],"dns_servers":["192.0.2.2"]}}],"disks":[{"id":"sda","size":1073741824,"bus":"virtio"}]}"#;

#[test]
fn a_definition_is_read_as_it_was_written_and_the_format_is_what_it_was() {
    let definition = VmDefinition::try_from(settings()).unwrap();
    assert_eq!(String::from_utf8(definition.to_json()).unwrap(), GOLDEN);
    assert_eq!(
        VmDefinition::from_json(GOLDEN.as_bytes()).unwrap(),
        definition
    );
}

#[test]
fn what_has_no_place_in_the_model_is_refused() {
    for (from, to) in [
        ("\"format\":1,", "\"format\":1,\"arguments\":[\"-device\"],"),
        (
            "\"network\":\"lan\",",
            "\"network\":\"lan\",\"script\":\"/x\",",
        ),
        (
            "\"bus\":\"virtio\"",
            "\"bus\":\"virtio\",\"path\":\"/dev/sda\"",
        ),
        ("\"bus\":\"virtio\"", "\"bus\":\"usb\""),
        ("\"prefix\":24", "\"prefix\":24,\"route\":\"x\""),
        ("\"id\":\"sda\"", "\"id\":\"../sda\""),
        ("1073741824", "1073741825"),
        ("52:54:00:00:00:01", "53:54:00:00:00:01"),
        ("uefi_secure_boot", "/usr/share/firmware.fd"),
    ] {
        let text = GOLDEN.replace(from, to);
        assert_ne!(text, GOLDEN);
        let read = VmDefinition::from_json(text.as_bytes());
        assert!(
            matches!(read, Err(InvalidDefinition::Json { .. })),
            "{text}"
        );
    }
    for end in 0..GOLDEN.len() {
        assert!(VmDefinition::from_json(&GOLDEN.as_bytes()[..end]).is_err());
    }
    let long = format!("{GOLDEN}{}", " ".repeat(MAX_JSON));
    let read = VmDefinition::from_json(long.as_bytes());
    assert!(matches!(read, Err(InvalidDefinition::TooLong { .. })));
}

#[test]
fn a_number_or_text_beyond_its_limits_is_refused() {
    type Change = fn(&mut VmSettings);
    let changes: [Change; 14] = [
        |s| s.format = 2,
        |s| s.name.clear(),
        |s| s.name = "a\nb".to_owned(),
        |s| s.name = "x".repeat(MAX_LABEL + 1),
        |s| s.memory_mib = 0,
        |s| s.memory_mib = u64::MAX,
        |s| s.processors = 0,
        |s| s.processors = u32::MAX,
        |s| s.disks.clear(),
        |s| s.disks.push(s.disks[0].clone()),
        |s| s.adapters.push(s.adapters[0].clone()),
        |s| s.adapters[0].network.clear(),
        |s| s.adapters[0].network = "\u{7f}".to_owned(),
        |s| {
            s.adapters = (0..=MAX_ADAPTERS as u8)
                .map(|last| NetworkAdapter {
                    mac: mac(last),
                    ..s.adapters[0].clone()
                })
                .collect();
        },
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut settings = settings();
        change(&mut settings);
        assert!(VmDefinition::try_from(settings).is_err(), "change {index}");
    }
}

#[test]
fn failover_settings_that_no_adapter_can_have_are_refused() {
    type Change = fn(&mut FailoverNetwork);
    let changes: [Change; 8] = [
        |f| f.addresses[0].prefix = 33,
        |f| f.addresses[0].address = "2001:db8::1".parse().unwrap(),
        |f| f.addresses[0].address = "0.0.0.0".parse().unwrap(),
        |f| f.gateways[0] = "224.0.0.1".parse().unwrap(),
        |f| f.protocol = IpProtocol::Ipv6,
        |f| f.gateways = vec![f.gateways[0]; MAX_GATEWAYS + 1],
        |f| f.dns_servers = vec![f.gateways[0]; MAX_DNS_SERVERS + 1],
        |f| f.addresses = vec![f.addresses[0]; MAX_ADDRESSES + 1],
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut settings = settings();
        let mut failover = failover();
        change(&mut failover);
        settings.adapters[0].failover = Some(failover);
        assert!(VmDefinition::try_from(settings).is_err(), "change {index}");
    }
}

#[test]
fn the_largest_definition_fits_into_its_limit() {
    let wide: IpAddr = "2001:1db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
    let address = FailoverAddress {
        address: wide,
        prefix: 128,
    };
    let failover = FailoverNetwork {
        protocol: IpProtocol::Ipv4AndIpv6,
        ipv4: Ipv4Source::Static,
        addresses: vec![address; MAX_ADDRESSES],
        gateways: vec![wide; MAX_GATEWAYS],
        dns_servers: vec![wide; MAX_DNS_SERVERS],
    };
    let label = "\u{10ffff}".repeat(MAX_LABEL);
    let mut settings = settings();
    settings.name.clone_from(&label);
    settings.adapters = (0..MAX_ADAPTERS as u8)
        .map(|last| NetworkAdapter {
            mac: mac(last),
            network: label.clone(),
            failover: Some(failover.clone()),
        })
        .collect();
    settings.disks = (0..MAX_DISKS)
        .map(|number| DiskSettings {
            id: format!("{number:0>64}").parse().unwrap(),
            size: DiskSize::try_from(lifeboat_model::MAX_DISK_SIZE).unwrap(),
            bus: DiskBus::Virtio,
        })
        .collect();
    let definition = VmDefinition::try_from(settings).unwrap();
    let json = definition.to_json();
    assert_eq!(VmDefinition::from_json(&json).unwrap(), definition);
}

#[test]
fn a_mac_address_is_six_pairs_of_digits() {
    for text in [
        "",
        "52:54:00:00:00",
        "52:54:00:00:00:01:02",
        "5:254:0:0:0:1",
        "+1:54:00:00:00:01",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
    ] {
        assert!(text.parse::<MacAddress>().is_err(), "{text}");
    }
    let mac: MacAddress = "52:54:00:AB:cd:EF".parse().unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
}
