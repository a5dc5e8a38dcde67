#!/usr/bin/env bash
# package.sh: makes the wheel, its SBOM and checksums, and installs the wheel into a clean environment to check it.
#
# usage: deploy/package.sh [--quick] [FOLDER]
#
#   FOLDER   where the files go (target/package; with --quick target/package-quick)
#   --quick  a wheel of the debug build, to check in seconds how one is built and installed: linked as usual, so for
#            systems like this one, and not small
#
# The wheel holds the release build, linked by zig against an old glibc so that it runs in any container of the last years.
# It must need no newer one and must be small. Needs a Rust toolchain, a C compiler with its binutils, and python3 with its
# venv module; maturin and zig come from PyPI into an environment of this script's, as deploy/wheel pins them. The same
# commit in the same place gives the same files again; SOURCE_DATE_EPOCH is the commit's time unless set.
#
# exit code: 0; 1 if anything failed, FOLDER is left as it was then; 2 for a wrong argument.

set -euo pipefail

readonly NEWEST_GLIBC=2.28
readonly LARGEST_WHEEL=6000000
readonly TRIES=3

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")

say() {
    printf '%s\n' "$*" >&2
}

die() {
    local code=$1
    shift
    say "${0##*/}: fatal: $*"
    exit "$code"
}

read_arguments() {
    quick=0 folder=''
    while (($# > 0)); do
        case $1 in
            --quick) quick=1 ;;
            -h | --help)
                sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
                exit 0
                ;;
            -*) die 2 "unknown argument '$1' (see --help)" ;;
            *)
                [[ -z $folder ]] || die 2 "more than one folder: '$folder' and '$1'"
                folder=$1
                ;;
        esac
        shift
    done
    target=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-$root/target}")
    export CARGO_TARGET_DIR=$target
    if ((quick)); then
        : "${folder:=$target/package-quick}"
    else
        : "${folder:=$target/package}"
    fi
}

require_commands() {
    local name
    for name in cargo cc sha256sum readelf; do
        command -v "$name" >/dev/null 2>&1 || die 1 "$name is not installed"
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || die 1 "python3 with its venv module is not installed"
}

# prepare_tools REQUIREMENTS: maturin and what it needs, in an environment that is kept while the pinned versions are the same.
prepare_tools() {
    local requirements=$here/wheel/$1 try
    tools=$target/package-tools/${1%.txt}
    cat "$here"/wheel/*.txt >"$work/pinned"
    cmp -s "$work/pinned" "$tools/complete" && return 0
    rm -rf "$tools"
    python3 -m venv "$tools"
    for ((try = 1; ; try++)); do
        "$tools/bin/pip" install --quiet --no-input --disable-pip-version-check --only-binary :all: \
            --requirement "$requirements" && break
        ((try < TRIES)) || die 1 "pip could not install $requirements in $TRIES tries"
        # Package indexes fail now and then.
        sleep $((try * 5))
    done
    cp "$work/pinned" "$tools/complete"
}

# build_wheel ARGUMENTS...: one wheel by maturin, left in $wheel.
build_wheel() {
    (cd "$here/wheel" && PATH=$tools/bin:$PATH maturin build --locked --out "$work/wheel" "$@")
    wheel=$(echo "$work"/wheel/*.whl)
    [[ -f $wheel ]] || die 1 "maturin made no wheel, or several: $wheel"
}

build_quick() {
    prepare_tools quick.txt
    build_wheel --profile dev --compatibility linux --auditwheel skip --compression-method stored
}

build_release() {
    local host
    prepare_tools requirements.txt
    host=$(rustc --version --verbose | sed -n 's/^host: //p')
    # Messages of a panic name sources, but not where they lay.
    RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    export RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$root=/moriio-proxy"
    build_wheel --release --zig --target "$host" --compatibility "manylinux_${NEWEST_GLIBC/./_}"
}

# What somebody does who gets the wheel, without network: the one script appears and works, the second name is a link to it.
check_installed() {
    local bin=$work/clean/bin router=$work/vllm-router added version
    python3 -m venv "$work/clean"
    find "$bin" -mindepth 1 -printf "%f\n" | sort >"$work/before"
    "$bin/pip" --isolated install --quiet --no-index --disable-pip-version-check "$wheel"
    added=$(find "$bin" -mindepth 1 -printf "%f\n" | sort | comm -13 "$work/before" -)
    [[ $added == moriio-proxy ]] || die 1 "the wheel should bring moriio-proxy alone, and brought: $added"
    program=$bin/moriio-proxy
    version=$("$bin/pip" --isolated --disable-pip-version-check show moriio-proxy | sed -n 's/^Version: //p')
    [[ $("$program" --version) == "moriio-proxy $version" ]] || die 1 "the wheel is of version $version, its program is not"
    ln -s "$program" "$router"
    [[ $("$router" --version) == "moriio-proxy $version" ]] || die 1 "the link does not tell its version"
    "$router" --help | grep -q -e --vllm-pd-disaggregation || die 1 "the link does not answer as vllm-router"
    "$program" demo --no-wait >"$work/demo" || die 1 "the demonstration failed: $(cat "$work/demo")"
    say "installed: $added $version; its demonstration had $(grep -c 'checked *ok' "$work/demo") checks"
}

# Left by maturin inside the wheel. Every package that goes into this build must be named in it.
check_sbom() {
    sbom=$(echo "$work"/clean/lib/python3*/site-packages/moriio_proxy-*.dist-info/sboms/moriio-proxy.cyclonedx.json)
    [[ -f $sbom ]] || die 1 "the wheel has no SBOM: $sbom"
    local missing
    cargo tree --locked --manifest-path "$root/Cargo.toml" --edges normal,build --prefix none |
        awk '$1 != "moriio-proxy" { print "pkg:cargo/" $1 "@" substr($2, 2) }' | sort -u >"$work/packages"
    [[ -s $work/packages ]] || die 1 "cargo tree names no package"
    sed -n 's/^ *"purl": "\([^"?]*\).*/\1/p' "$sbom" | sort -u >"$work/named"
    missing=$(comm -23 "$work/packages" "$work/named")
    [[ -z $missing ]] || die 1 "the SBOM does not name: $missing"
    say "SBOM: CycloneDX, $(wc -l <"$work/named") packages, $(wc -l <"$work/packages") of them in this build"
}

check_symbols() {
    local newest
    newest=$(readelf --version-info --wide "$program" | grep -o 'GLIBC_[0-9][0-9.]*' | sort --version-sort --unique | tail -n 1)
    [[ $newest == GLIBC_* ]] || die 1 "the program names no version of glibc"
    printf '%s\n' "$newest" "GLIBC_$NEWEST_GLIBC" | sort --version-sort --check=quiet ||
        die 1 "the program needs $newest, which is newer than $NEWEST_GLIBC"
    say "glibc: $newest or newer"
}

check_size() {
    local size
    size=$(stat --format %s "$wheel")
    ((size <= LARGEST_WHEEL)) || die 1 "the wheel has $size bytes, more than $LARGEST_WHEEL"
    say "size: $size bytes"
}

# Copies wheel and SBOM to FOLDER and leaves checksums beside them.
deliver() {
    local name=${wheel##*/}
    mkdir -p "$folder"
    cp "$wheel" "$folder/$name"
    cp "$sbom" "$folder/${name%.whl}.cyclonedx.json"
    (cd "$folder" && sha256sum "$name" "${name%.whl}.cyclonedx.json" >SHA256SUMS)
    say "in $folder:"
    cat "$folder/SHA256SUMS"
}

main() {
    read_arguments "$@"
    require_commands
    mkdir -p "$target"
    work=$(mktemp -d "$target/package.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 315532800)}
    if ((quick)); then
        build_quick
    else
        build_release
        check_size
    fi
    check_installed
    ((quick)) || check_symbols
    check_sbom
    deliver
}

main "$@"
