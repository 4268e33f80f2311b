# Everything a newcomer runs. Needs Python 3.11 or newer, a C compiler and make; no root.
#
#   make demo     the whole path on a live database, with a table of what was measured
#   make test     lint, then the tests on the release build, and again on the debug build
#   make bench    every workload beside the same one on a raw file and on peers; QUICK=1 in under three minutes
#   make torture  every harness that attacks the engine, for MINUTES (8), and a row for each
#   make test-asan  the tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer
#   make build    the editable install in .venv          make sdist wheel    what is released
#   make lint     ruff, cython-lint, mypy, stubtest       make clean          away with what was built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= all
MINUTES ?= 8
SOURCES := pyproject.toml setup.py MANIFEST.in README.md $(shell find cowengine -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.in')
EXTENSIONS := setup.py $(wildcard cowengine/core/*.pyx cowengine/core/*.pxd cowengine/core/*_impl.[ch] cowengine/*/*.h cowengine/capi/*)
STUBBED := $(subst /,.,$(basename $(wildcard cowengine/core/*.pyi)))

# What is tested is never the checkout (-P keeps it off the path) but a copy that was built and installed from it.
site = $(CURDIR)/build/$(1)-site
PYTEST = PYTHONPATH=$(call site,$(1)) COWENGINE_EXPECT_SITE=$(call site,$(1)) COWENGINE_EXPECT_DEBUG=$(2) $(BIN)/python -P -m pytest
# The debug build, with bounds checks and assertions, passes the same tests. Left out is what does not depend on the build.
BUILD_INDEPENDENT := tests/tidy tests/peers tests/writers tests/package/test_release.py tests/crash/test_barriers.py tests/mount tests/nbd_systems/test_xfs.py tests/nbd_systems/test_fleecing_guide.py tests/nbd_systems/test_served_mounts.py tests/nbd_systems/test_postgresql_on_volumes.py
# Builds for the harnesses that run under a sanitizer: make build/asan-site, make build/tsan-site.
# They compile the C that was generated for the release; so does build/gcov-site, in which gcc counts branches.
SANITIZERS_asan := address,undefined
SANITIZERS_tsan := thread
build/asan-site build/tsan-site build/gcov-site: | build/release-site
INSTALL := PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install -q --no-build-isolation

.PHONY: all venv build lint test test-release test-debug test-asan demo bench torture sdist wheel clean
.DELETE_ON_ERROR:

all: build

venv: $(VENV)/.created

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cowengine needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=23.1" "setuptools>=77" "cython>=3.1" "cffi>=1.16"
	touch $@

build: $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(EXTENSIONS)
	$(INSTALL) -e ".[$(EXTRAS)]"
	touch $@

build/%-site: $(VENV)/.installed $(SOURCES)
	rm -rf $@ build/$*/lib*
	COWENGINE_DEBUG=$(if $(filter debug,$*),1,0) COWENGINE_SANITIZE=$(SANITIZERS_$*) COWENGINE_COVERAGE=$(if $(filter gcov,$*),1,0) \
		$(INSTALL) --no-deps --target $@ .
	touch $@

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	PATH=$(BIN):$$PATH cython-lint cowengine
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist .ci/stubtest-allowlist --ignore-unused-allowlist $(STUBBED)

test: lint test-release test-debug

# tests/torture/test_races.py looks for races in the build for ThreadSanitizer, test_kernel_branches.py for branches.
test-release: build/release-site build/tsan-site build/gcov-site
	$(call PYTEST,release,0) tests
	$(call PYTEST,release,0) bench --benchmark-disable

test-debug: build/debug-site
	$(call PYTEST,debug,1) tests $(addprefix --ignore=,$(BUILD_INDEPENDENT))

test-asan: build/asan-site
	$(BIN)/python -P tests/torture/sanitized.py --suite

demo: build
	$(BIN)/python bench/demo.py

bench: build
	$(BIN)/python -P -m pytest bench --benchmark-only -o timeout=0 $(if $(QUICK),--quick)

# Fuzzing needs atheris, which has no wheel for every Python: its row says so then.
torture: build/release-site build/asan-site build/tsan-site build/gcov-site
	-$(BIN)/python -m pip install -q --only-binary :all: atheris
	PYTHONPATH=$(call site,release) $(BIN)/python -P tests/torture/torture.py --minutes $(MINUTES)

sdist wheel: %: $(VENV)/.created
	$(BIN)/python -m pip install -q build
	$(BIN)/python -m build --$* --outdir dist .

clean:
	rm -rf build dist *.egg-info cowengine/*/*.so cowengine/capi/*.pc $(VENV)/.created $(VENV)/.installed .pytest_cache .mypy_cache .ruff_cache
