use super::*;

#[test]
fn releases_are_read_from_what_engines_say() {
    let check = |text: &str, want: Option<(u16, u16, u16, bool)>| {
        let got = EngineVersion::parse(text).map(|r| (r.major, r.minor, r.patch, r.is_final));
        assert_eq!(got, want, "{text}");
    };
    check("0.32.0", Some((0, 32, 0, true)));
    check(" v0.30.0\n", Some((0, 30, 0, true)));
    check("0.33.0rc1", Some((0, 33, 0, false)));
    check("0.33.0.rc1", Some((0, 33, 0, false)));
    check("0.11.2.dev12+gabc", Some((0, 11, 2, false)));
    check("0.32.1.dev5+g1.rocm700", Some((0, 32, 1, false)));
    check("0.19.1+rocm700", Some((0, 19, 1, true)));
    check("0.19.1.post2", Some((0, 19, 1, true)));
    check("0.33.dev1", Some((0, 33, 0, false)));
    check("0.33", Some((0, 33, 0, true)));
    for bad in ["", "dev", "v", "1", "x.y.z", "0.99999999.1", "0.", "0.3x.1", "..", "0.32.0 beta", "٣.٣.٣"] {
        check(bad, None);
    }
}

#[test]
fn rows_are_found_by_release_and_wording() {
    let name = |text: &str, dialect| traits(EngineVersion::parse(text), dialect).name;
    for (text, dialect, want) in [
        ("0.13.0", Dialect::A, "unknown"),
        ("0.14.0", Dialect::A, "0.14.0 to 0.16.0"),
        ("0.17.1", Dialect::A, "0.17.0 to 0.17.1"),
        ("0.19.1", Dialect::A, "0.18.0 to 0.19.1"),
        ("0.22.1", Dialect::B, "0.20.0 to 0.22.1"),
        ("0.23.0", Dialect::B, "0.23.0"),
        ("0.24.0rc1", Dialect::B, "0.23.0"),
        ("0.27.1", Dialect::B, "0.24.0 to 0.27.1"),
        ("0.30.0", Dialect::B, "0.28.0 to 0.30.0"),
        ("0.31.0", Dialect::B, "0.31.0"),
        ("0.32.1.dev3", Dialect::B, "0.32.0"),
        ("0.33.0rc2", Dialect::B, "0.32.0"),
        ("0.33.0", Dialect::B, "0.33.0 and newer"),
        ("1.2.3", Dialect::B, "0.33.0 and newer"),
        ("0.32.0", Dialect::A, "unknown"),
        ("0.19.1", Dialect::B, "unknown"),
        ("nonsense", Dialect::B, "unknown"),
    ] {
        assert_eq!(name(text, dialect), want, "{text}");
    }
}

#[test]
fn facts_stand_as_the_protocol_says() {
    let row = |minor| {
        let dialect = if minor < 20 { Dialect::A } else { Dialect::B };
        traits(Some(EngineVersion::new(0, minor, 0)), dialect)
    };
    for minor in 14..=35 {
        let row = row(minor);
        assert_eq!(row.plain_id, minor >= 24, "{minor}");
        assert_eq!(row.first_contact_gate, minor < 31, "{minor}");
        assert_eq!(row.bound_pairs, (28..31).contains(&minor), "{minor}");
        assert_eq!(row.wake, minor >= 24, "{minor}");
        assert_eq!(row.early_release, minor >= 28, "{minor}");
        assert_eq!(row.write_failed, minor >= 33, "{minor}");
        assert_eq!(row.plain_requests, minor >= 33, "{minor}");
        let release = match minor {
            ..23 => ReleaseForm::None,
            23 => ReleaseForm::Text,
            24.. => ReleaseForm::Map,
        };
        assert_eq!(row.release, release, "{minor}");
        assert_eq!(row.warning(Mode::Write).is_none(), minor >= 23, "{minor}");
        assert_eq!(row.warning(Mode::Read).is_none(), minor >= 28, "{minor}");
    }
    assert!(plain_id(row(24), row(33)) && !plain_id(row(23), row(33)) && !plain_id(row(33), &UNKNOWN));
    assert!(!first_contact_gate(row(31), row(33)) && first_contact_gate(row(30), row(33)));
    assert!(first_contact_gate(row(33), &UNKNOWN));
    // An unknown release of the newer wording may be one of 0.28.0 to 0.30.0, of the older one not.
    assert!(bound_pairs(&UNKNOWN, Dialect::B) && !bound_pairs(&UNKNOWN, Dialect::A));
    assert!(bound_pairs(row(29), Dialect::B) && !bound_pairs(row(31), Dialect::B));
    assert!(row(18).warning(Mode::Write).is_some_and(|line| line.contains("0.18.0 to 0.19.1: WRITE is legacy")));
    assert_eq!(reference_table().lines().count(), ROWS.len() + 3);
}
