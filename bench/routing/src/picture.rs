//! The picture: for each workload the 99th percentile of the time to the first token, a bar a policy, with its spread.

use std::fmt::Write as _;

use crate::Bar;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 270.0;
const ROW: f64 = 20.0;

/// All workloads, one below the other.
pub fn of(workloads: &[(&str, Vec<Bar>)]) -> String {
    let mut body = String::new();
    let mut top = 10.0;
    for (name, bars) in workloads {
        let most = bars.iter().map(|bar| bar.p99[2]).fold(0.0, f64::max);
        let x = |seconds: f64| LEFT + seconds / most * (WIDTH - LEFT - 150.0);
        // Writing to a String cannot fail.
        let _ = writeln!(
            body,
            r#"<text x="10" y="{:.0}" font-weight="bold">{name}: p99 of the time to the first token</text>"#,
            top + 14.0
        );
        top += 24.0;
        for bar in bars {
            let [median, least, most] = bar.p99;
            let (y, middle) = (top + 3.0, top + 10.0);
            let _ = writeln!(
                body,
                r##"<text x="{:.0}" y="{:.0}" text-anchor="end">{}</text><rect x="{LEFT}" y="{y:.0}" width="{:.1}" height="14" fill="{}"/><path d="M{:.1} {middle:.0}H{:.1}" stroke="#333"/><text x="{:.1}" y="{:.0}">{median:.2} s, {:.0} % cached</text>"##,
                LEFT - 8.0,
                top + 14.0,
                bar.name,
                x(median) - LEFT,
                if bar.name.starts_with("cache_aware") || bar.name.contains("stay") { "#2a7f62" } else { "#9aa5b1" },
                x(least),
                x(most),
                x(most) + 6.0,
                top + 14.0,
                bar.hit[0],
            );
            top += ROW;
        }
        top += 16.0;
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top:.0}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>
{body}</svg>
"##
    )
}
