#!/usr/bin/env bash
# Runs tests against other versions of a library than the one that is installed: each in an environment of its own,
# which is gone afterwards. Says which versions were tried and which of them passed; exit code 1 if any did not.
#
#     tests/versions/run.sh [-e EXTRAS] [-t "TESTS"] REQUIREMENTS...
#
# -e  extras of this package to install, comma-separated       (default: litellm,proxy)
# -t  what pytest is given: files, folders, options            (default: tests/litellm)
# Each of REQUIREMENTS is one run: what pip is told, in one argument. "oldest NAME" stands for the oldest release that the
# bound in pyproject.toml lets in, NAME by itself for the newest that installs.
#
#     tests/versions/run.sh "oldest litellm" litellm
#     tests/versions/run.sh -e agents -t tests/langchain "oldest langchain-core" "langchain-core langchain"
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
extras=litellm,proxy
tests=tests/litellm
while getopts e:t: option; do
    case $option in
        e) extras=$OPTARG ;;
        t) tests=$OPTARG ;;
        *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2 && exit 2; }

# The bound of a requirement in pyproject.toml: its first ">=".
bound() {
    "$python" - "$1" <<'PROGRAM'
import re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
name = re.escape(sys.argv[1])
found = [m[1] for group in groups for one in group if (m := re.match(rf"{name}(?:\[[^]]*\])?\s*>=\s*([0-9.]+)", one))]
print(found[0] if found else sys.exit(f"pyproject.toml has no lower bound for {sys.argv[1]}"))
PROGRAM
}

failed=0
summary=()
for requirements in "$@"; do
    if [[ $requirements == oldest\ * ]]; then
        name=${requirements#oldest }
        version=$(bound "$name") || exit 2
        # 1.108 is 1.108.0 to pip; where that was never released, the first one after it will do.
        requirements="$name==$version"
        fallback="$name~=$version.0"
    else
        fallback=
    fi
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder of this run
    trap "rm -rf '$folder'" EXIT
    "$python" -m venv "$folder/venv"
    pip=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    common=(--editable ".[$extras]" anthropic hypothesis openai opentelemetry-sdk prometheus-client pytest pytest-asyncio)
    # What only the tests of LangChain's adapter import.
    [[ $extras == *agents* ]] && common+=(langchain-classic langchain-openai langchain-tests
        langgraph-checkpoint-conformance langgraph-checkpoint-sqlite)
    # shellcheck disable=SC2086  # several requirements may stand in one argument
    if ! "${pip[@]}" "${common[@]}" $requirements && ! { [ -n "$fallback" ] && "${pip[@]}" "${common[@]}" "$fallback"; }; then
        summary+=("not installed: $requirements") && failed=1
        rm -rf "$folder"
        continue
    fi
    first=${requirements%%[=<>~!\[ ]*}
    version=$("$folder/venv/bin/python" -c "import importlib.metadata as m; print(m.version('$first'))")
    printf '\n== %s %s\n' "$first" "$version"
    # shellcheck disable=SC2086  # pytest takes several arguments
    if "$folder/venv/bin/python" -m pytest -p no:cacheprovider -q $tests; then
        summary+=("passed: $first $version")
    else
        summary+=("failed: $first $version") && failed=1
    fi
    rm -rf "$folder"
done
printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
