# unicon: the only build file. `make info` says what was found on this machine.
#   all check demo deps install uninstall bench asan fuzz lint format golden info clean
# Variables: CC, B or BUILD (where objects go), CUDA=auto|yes|no, CUDA_ARCH, NVCC, WERROR=1, V=1, PREFIX, DESTDIR.
# `make asan check` runs the tests in a build with address and undefined-behaviour checks.
VERSION = 0.1.0
CC = gcc
CXX = g++
PREFIX = /usr/local
CUDA = auto
CUDA_ARCH = sm_80,sm_89,sm_90
FUZZ_SECONDS = 20
BENCH_ARGS = -p
PYTHON = python3
.DEFAULT_GOAL := all
.SECONDARY .DELETE_ON_ERROR:

# ---- what this machine has ----
MACHINE := $(or $(shell $(CC) -dumpmachine 2>/dev/null),$(shell uname -m))
CC_VERSION := $(shell $(CC) --version 2>/dev/null | head -n 1)
ISAS := portable $(if $(filter x86_64% amd64%,$(MACHINE)),avx2 avx512 avx512bf16)
ifneq ($(CUDA),no)
NVCC := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_VERSION := $(if $(NVCC),$(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p'))
endif
ifeq ($(CUDA)$(CUDA_VERSION),yes)
$(error CUDA=yes, but no nvcc in PATH or /usr/local/cuda/bin: install the CUDA Toolkit or say NVCC=/path/to/nvcc)
endif
ifeq ($(filter auto yes no,$(CUDA)),)
$(error CUDA=$(CUDA): say auto, yes or no)
endif
# A header that the compiler finds and a library that the linker finds; asked only where it matters.
has = $(shell $(CC) -E -include $1 -x c /dev/null >/dev/null 2>&1 && \
    $(CC) -print-file-name=lib$2.so | grep / >/dev/null && echo yes)
ifneq ($(filter bench info check,$(MAKECMDGOALS)),)
HAVE_OPENBLAS := $(or $(call has,cblas.h,openblas),no)
HAVE_DNNL := $(or $(call has,oneapi/dnnl/dnnl.h,dnnl),no)
endif

# ---- variants: objects live in build/<variant>; without libFuzzer `make fuzz` replays stored inputs under asan ----
ifneq ($(filter fuzz,$(VARIANT) $(MAKECMDGOALS)),)
FUZZER := $(shell echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | \
    clang -fsanitize=fuzzer -x c - -o /dev/null 2>/dev/null && echo yes)
endif
fuzz_variant = $(if $(filter fuzz,$(MAKECMDGOALS)),$(if $(FUZZER),fuzz,asan))
VARIANT ?= $(firstword $(filter asan,$(MAKECMDGOALS)) $(fuzz_variant) release)
ifeq ($(filter release asan fuzz,$(VARIANT)),)
$(error VARIANT=$(VARIANT): say release, asan or fuzz)
endif
BUILD = build
B = $(BUILD)/$(VARIANT)
BIN := $(if $(filter build/release,$B),bin,$B/bin)
OPT_release = -O3
OPT_asan = -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
OPT_fuzz = $(OPT_asan) -fsanitize=fuzzer-no-link
ifeq ($(VARIANT),fuzz)
override CC = clang
endif

# ---- flags ----
WARN = -Wall -Wextra -Wpedantic -Werror=vla $(if $(WERROR),-Werror)
CFLAGS = -std=c11 $(OPT_$(VARIANT)) -g $(WARN) -D_GNU_SOURCE -I. -fopenmp \
    -ffp-contract=off -fno-math-errno -fno-trapping-math -MMD -MP
BANNED = -include core/banned.h
# Fuzz targets are parsers: instrumented kernels would take clang half an hour to compile and find nothing.
KERN_CFLAGS = $(if $(filter fuzz,$(VARIANT)),$(filter-out -fsanitize% -fno-sanitize%,$(CFLAGS)),$(CFLAGS))
ISA_avx2 = -mavx2 -mfma -mf16c
ISA_avx512 = $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512
ISA_avx512bf16 = $(ISA_avx512) -mavx512bf16
# header:library of what the store and the tokenizer stand on
USES = tiffio.h:tiff jpeglib.h:jpeg png.h:png jansson.h:jansson unistr.h:unistring
comma := ,
LIBS = -Wl$(comma)--as-needed $(foreach u,$(USES),-l$(lastword $(subst :, ,$u))) -lm
ifneq ($(CUDA_VERSION),)
archs := $(subst $(comma), ,$(CUDA_ARCH))
CUDA_LIB := $(patsubst %/libcudart.so,%,$(firstword $(wildcard $(foreach d,lib64 targets/x86_64-linux/lib \
    targets/sbsa-linux/lib,$(dir $(realpath $(NVCC)))../$d/libcudart.so))))
NVFLAGS = -std=c++17 -O3 -I. -Xcompiler -Wall,-Wextra,-fno-exceptions $(if $(WERROR),-Werror all-warnings) \
    $(if $(filter sm_90,$(archs)),-DHAVE_SM_90A) \
    $(foreach a,$(archs:sm_90=sm_90a),-gencode arch=$(a:sm_%=compute_%),code=$a) \
    -gencode arch=$(patsubst sm_%,compute_%,$(lastword $(archs))),code=$(patsubst sm_%,compute_%,$(lastword $(archs)))
LIBS += $(if $(CUDA_LIB),-L$(abspath $(CUDA_LIB)) \
    -Wl$(comma)-rpath$(comma)$(abspath $(CUDA_LIB))) -lcudart -lcublasLt -lstdc++
endif

# ---- files ----
CPU := $(wildcard kernels/*_cpu.c)
SRC := $(filter-out $(CPU) $(if $(CUDA_VERSION),kernels/cuda_none.c),$(wildcard kernels/*.c core/*.c core/*/*.c \
    store/*.c store/*/*.c jobs/*.c))
CU := $(if $(CUDA_VERSION),$(wildcard kernels/*_cuda.cu))
OBJ := $(SRC:%.c=$B/%.o) $(foreach i,$(ISAS),$(CPU:%.c=$B/%.$i.o)) $(CU:%.cu=$B/%.cu.o)
PROGRAMS := $(patsubst cmd/%.c,$(BIN)/%,$(wildcard cmd/unicon-*.c))
CMD := $(patsubst %.c,$B/%.o,$(filter-out cmd/unicon-%,$(wildcard cmd/*.c)))
KIT := $(patsubst %.c,$B/%.o,$(filter-out tests/t_%,$(wildcard tests/*.c)))
# The CUDA twin is tested on a device (t_cuda* skip where none is) and on the emulated one of tests/emu (emu/t_cuda*).
EMU_OBJ = $(patsubst %.cc,$B/%.o,$(wildcard tests/emu/*.cc)) $(patsubst %.cu,$B/emu/%.o,$(wildcard kernels/*_cuda.cu)) \
    $(filter-out %.cu.o %/cuda_none.o,$(OBJ))
EMU_TESTS := $(patsubst tests/%.c,$B/emu/%,$(wildcard tests/t_cuda*.c))
TESTS := $(patsubst tests/%.c,$B/%,$(wildcard tests/t_*.c)) $(EMU_TESTS)
SCRIPTS := $(filter-out tests/lib.sh tests/run.sh tests/gpu.sh,$(wildcard tests/*.sh))
FUZZ := $(patsubst tests/fuzz/%.c,$B/fuzz/%,$(wildcard tests/fuzz/f_*.c))
BENCH := $(wildcard tests/bench/*.c)
TOOLS := $(patsubst tests/tool/%.c,$B/tool/%,$(wildcard tests/tool/*.c))
DEMOS := $(patsubst tests/demo/%.c,$B/demo/%,$(wildcard tests/demo/*.c))
PRIVATE := $(addprefix core/,banned.h poison.h op/common.h op/product.h diffusion/pipeline_run.h model/clip_table.h \
    model/clip_words.h model/transformer.h model/unet_encoder.h \
    diffusion/pipeline_batch.h) $(addprefix store/,image_codec.h strict_json.h json_conf.h torch_zip.h \
    unpickle.h exif.h lora_keys.h checkpoint_keys.h model_shapes.h unicon_tables.h)
HEADERS := $(filter-out $(PRIVATE),$(wildcard kernels/kern.h kernels/dev.h core/*.h core/*/*.h store/*.h jobs/*.h))
MAN := $(wildcard man/*.[1-7])
FORMAT := $(wildcard $(foreach d,kernels core core/* store store/* jobs cmd tests tests/*,$d/*.[ch]))

# ---- building ----
.PHONY: all check demo deps install uninstall bench asan fuzz lint format golden info clean FORCE
all asan: $B/libunicon.a $(PROGRAMS)
FORCE:

say = $(if $V,,@echo '$1 $@'; )
# $1 changes when the text $2 does: objects follow their flags, the library follows its list of objects.
define stamp
$1: FORCE
	@mkdir -p $$(@D); echo '$2' | cmp -s - $$@ || echo '$2' >$$@
endef
$(eval $(call stamp,$B/flags,$(CC) $(CC_VERSION) $(CFLAGS) $(CXX) $(NVCC) $(CUDA_VERSION) $(NVFLAGS)))
$(eval $(call stamp,$B/objects,$(OBJ)))

$B/libunicon.a: $(OBJ) $B/objects
$B/kit.a: $(KIT)
%.a:
	$(call say,ar)rm -f $@; ar rcs $@ $(filter %.o,$^)
define isa_rule
$B/%.$1.o: %.c $B/flags
	@mkdir -p $$(@D)
	$$(call say,$(CC))$(CC) $(KERN_CFLAGS) $(BANNED) $(ISA_$1) -DISA=$1 -c $$< -o $$@
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$i)))
$B/cmd/%.o $B/tests/%.o: BANNED =
$B/cmd/%.o $B/tests/t_cli.o: CFLAGS += -DUNICON_VERSION='"$(VERSION)"'
$B/%.o: %.c $B/flags
	@mkdir -p $(@D)
	$(call say,$(CC))$(CC) $(CFLAGS) $(BANNED) -c $< -o $@
$B/%.cu.o: %.cu $B/flags
	@mkdir -p $(@D)
	$(call say,nvcc)$(NVCC) $(NVFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
LINK = $(call say,link)mkdir -p $(@D); $(CC) $(CFLAGS) $(filter %.o,$^) $(filter %.a,$^) $(LIBS) -o $@
$(BIN)/unicon-%: $B/cmd/unicon-%.o $(CMD) $B/libunicon.a
	$(LINK)
$B/t_%: $B/tests/t_%.o $B/kit.a $B/libunicon.a
	$(LINK)
$B/t_cli: $(CMD)
EMU_FLAGS = -std=c++17 $(subst -O3,-O2,$(OPT_$(VARIANT))) -g $(WARN) -Itests/emu -I. -ffp-contract=off -fno-math-errno \
    -fno-trapping-math -fno-strict-aliasing -Wno-unused-function -Wno-pedantic -MMD -MP
$B/tests/emu/%.o: tests/emu/%.cc $B/flags
	@mkdir -p $(@D)
	$(call say,$(CXX))$(CXX) $(EMU_FLAGS) -c $< -o $@
$B/emu/kernels/%.o: kernels/%.cu $B/flags
	@mkdir -p $(@D)
	$(call say,$(CXX))$(CXX) $(EMU_FLAGS) -x c++ -c $< -o $@
$B/libunicon-emu.a: $(EMU_OBJ) $B/objects
$B/emu/t_%: $B/tests/t_%.o $B/kit.a $B/libunicon-emu.a
	$(LINK)
$B/emu/unicon-%: $B/cmd/unicon-%.o $(CMD) $B/libunicon-emu.a
	$(LINK)
$B/emu/%: LIBS += -lstdc++
$B/tool/%: $B/tests/tool/%.o $B/kit.a $B/libunicon.a
	$(LINK)
$B/demo/%: $B/tests/demo/%.o $B/libunicon.a
	$(LINK)
$B/fuzz/%: $B/tests/fuzz/%.o $(if $(filter fuzz,$(VARIANT)),,$B/tests/fuzz/replay.o) $B/libunicon.a
	$(LINK)
$B/fuzz/%: LIBS += $(if $(filter fuzz,$(VARIANT)),-fsanitize=fuzzer)
yes = $(filter yes,$(HAVE_$1))
$B/tests/bench/%.o: CFLAGS += $(if $(call yes,OPENBLAS),-DHAVE_OPENBLAS) $(if $(call yes,DNNL),-DHAVE_DNNL)
$B/tests/bench/peer.o: $B/peers
$(eval $(call stamp,$B/peers,$(HAVE_OPENBLAS) $(HAVE_DNNL)))
$B/bench $B/emu/bench: LIBS += $(if $(call yes,OPENBLAS),-lopenblas) $(if $(call yes,DNNL),-ldnnl)
$B/bench: $(BENCH:%.c=$B/%.o) $B/kit.a $B/libunicon.a
	$(LINK)
$B/emu/bench: $(BENCH:%.c=$B/%.o) $B/kit.a $B/libunicon-emu.a
	$(LINK)
-include $(wildcard $(patsubst %,$B/%/*.d,kernels emu/kernels core core/* store store/* jobs cmd tests tests/*))

# ---- needs: make builds this file first where a goal needs it, and starts over when something was installed ----
SYSTEMS = apt-get dnf pacman zypper
SYSTEM_apt-get = tiff=libtiff-dev jpeg=libjpeg-dev png=libpng-dev jansson=libjansson-dev unistring=libunistring-dev \
    libc=libc6-dev cxx=g++ omp=libomp-dev prove=perl blas=libopenblas-dev dnnl=libdnnl-dev install='apt-get -qq \
    update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends'
SYSTEM_dnf = tiff=libtiff-devel jpeg=libjpeg-turbo-devel png=libpng-devel jansson=jansson-devel \
    unistring=libunistring-devel libc=glibc-devel cxx=gcc-c++ omp=libomp-devel prove=perl-Test-Harness \
    blas=openblas-devel \
    dnnl=onednn-devel install='dnf -y install'
SYSTEM_pacman = tiff=libtiff jpeg=libjpeg-turbo png=libpng jansson=jansson unistring=libunistring \
    libc=gcc cxx=gcc omp=openmp prove=perl blas=openblas dnnl=onednn install='pacman -S --noconfirm --needed'
SYSTEM_zypper = tiff=libtiff-devel jpeg=libjpeg8-devel png=libpng16-devel jansson=libjansson-devel \
    unistring=libunistring-devel libc=glibc-devel cxx=gcc-c++ omp=libomp-devel prove=perl blas=openblas-devel \
    dnnl=onednn-devel install='zypper -n install'
compiles = echo 'int main(void) { return 0; }' | $(CC) $1 -x c - -o $(BUILD)/probe 2>/dev/null
NEED = command -v $(CC) >/dev/null || miss $(notdir $(CC)); command -v $(CXX) >/dev/null || miss $$cxx; \
    $(call compiles,) || miss $$libc; \
    $(call compiles,-fopenmp -include omp.h) || case '$(CC)' in (*clang*) miss $$omp;; esac; rm -f $(BUILD)/probe; \
    $(foreach u,$(USES),test '$(call has,$(firstword $(subst :, ,$u)),$(lastword $(subst :, ,$u)))' || \
    miss $$$(lastword $(subst :, ,$u));) command -v prove >/dev/null || miss $$prove; \
    for w in $(WANT); do command -v $$w >/dev/null || miss $$w; done;
NEED_bench = test '$(call has,cblas.h,openblas)' || miss $$blas; \
    test '$(call has,oneapi/dnnl/dnnl.h,dnnl)' || miss $$dnnl;
deps_goal := $(firstword $(filter deps check demo bench,$(MAKECMDGOALS)))
ifneq ($(and $(deps_goal),$(if $(findstring n,$(firstword -$(MAKEFLAGS))),,run)),)
include $(BUILD)/deps.mk
$(BUILD)/deps.mk: FORCE
	@mkdir -p $(BUILD); [ -f $@ ] || : >$@; missing=; miss() { missing="$$missing $$*"; }; \
	for pm in $(SYSTEMS) none; do command -v $$pm >/dev/null && break; done; libc=libc cxx=g++ omp=libomp; \
	prove=prove install=; \
	$(foreach u,$(USES),$(lastword $(subst :, ,$u))=lib$(lastword $(subst :, ,$u));) \
	case $$pm in $(foreach m,$(SYSTEMS),($m) $(SYSTEM_$m);;) esac; $(NEED) $(NEED_$(deps_goal)) \
	[ "$$missing" ] || exit 0; echo "missing:$$missing"; as=; [ "$$(id -u)" = 0 ] || as=sudo; \
	[ "$$install" ] || { echo 'deps: no package manager that I know; please install these and try again' >&2; exit 1; }; \
	echo "$$as $$install$$missing"; if $$as sh -c "$$install$$missing"; then echo "# installed$$missing" >$@; \
	else echo 'deps: not installed$(if $(NEED_$(deps_goal)),; going on without)' >&2; \
	    $(if $(NEED_$(deps_goal)),,exit 1;) fi
endif
deps: ; @:

# ---- tests ----
export B BIN VARIANT
export UNICON_CC = $(CC)
# A thread that waits gives its processor to others: spinning makes runs ten times longer on a machine that is busy.
export OMP_WAIT_POLICY ?= passive
RUN = sh tests/run.sh $B/tap
check: info-found all $(TESTS) $(FUZZ) $(TOOLS) $B/emu/unicon-sample
	@$(RUN) $(TESTS) $(SCRIPTS)
lint:
	@sh tests/lint.sh && sh tests/man.sh
fuzz: $(FUZZ)
	@set -e; for f in $(notdir $(FUZZ)); do mkdir -p $B/corpus/$$f; echo "fuzz: $$f"; \
	$(if $(filter fuzz,$(VARIANT)),$B/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=$B/corpus/ $B/corpus/$$f tests/fuzz/corpus/$$f, \
	    $B/fuzz/$$f tests/fuzz/corpus/$$f); done
bench: $(if $(BENCH),$B/bench)
	@$(if $(BENCH),$B/bench $(BENCH_ARGS),echo 'bench: there is nothing in tests/bench yet')
demo: $(DEMOS)
	@mkdir -p demo; set -e; for d in $(DEMOS); do $$d demo/$$(basename $$d).ppm; done
golden:
	@set -e; for s in $(filter-out %golden.py %/full.py %/full_pairs.py %/unicon.py %/unicon_more.py \
	    %/unicon_roundtrip.py,$(wildcard tests/reference/*.py)); do $(PYTHON) $$s; done
format:
	clang-format -i $(FORMAT)

# ---- what was found ----
INFO = MACHINE ISAS CC_VERSION CUDA_FOUND OPENBLAS DNNL
CUDA_FOUND = $(if $(CUDA_VERSION),$(NVCC) $(CUDA_VERSION) for $(CUDA_ARCH),no)
OPENBLAS = $(HAVE_OPENBLAS)$(if $(call yes,OPENBLAS),, (package libopenblas-dev; only make bench uses it))
DNNL = $(HAVE_DNNL)$(if $(call yes,DNNL),, (package libdnnl-dev; only make bench uses it))
info:
	@$(foreach v,$(INFO),printf '%-14s %s\n' $v '$($v)';)
.PHONY: info-found
info-found:
	@$(foreach v,$(INFO),$(if $($v),,echo 'check: `make info` found nothing for $v' >&2; exit 1;)):

# ---- installing ----
D = $(DESTDIR)$(PREFIX)
INSTALLED = $(addprefix $D/include/unicon/,$(HEADERS)) $D/lib/libunicon.a $D/lib/pkgconfig/unicon.pc \
    $(foreach m,$(MAN),$D/share/man/man$(subst .,,$(suffix $m))/$(notdir $m)) $(PROGRAMS:$(BIN)/%=$D/bin/%)
install: all
	@set -e; put() { mkdir -p "$$(dirname "$$3")"; install -m $$1 "$$2" "$$3"; echo "$$3"; }; \
	$(foreach h,$(HEADERS),put 644 $h '$D/include/unicon/$h';) put 644 $B/libunicon.a '$D/lib/libunicon.a'; \
	$(foreach m,$(MAN),put 644 $m '$D/share/man/man$(subst .,,$(suffix $m))/$(notdir $m)';) \
	$(foreach p,$(PROGRAMS),put 755 $p '$D/bin/$(notdir $p)';) \
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: unicon' 'Description: unified diffusion-based conditional generation' \
	    'Version: $(VERSION)' 'Cflags: -I$${prefix}/include/unicon' \
	    'Libs: -L$${prefix}/lib -lunicon -fopenmp $(filter -fsanitize=%,$(OPT_$(VARIANT))) $(LIBS)' >$B/unicon.pc; \
	put 644 $B/unicon.pc '$D/lib/pkgconfig/unicon.pc'
uninstall:
	@rm -f $(patsubst %,'%',$(INSTALLED))
	@cd '$D' && rmdir include/unicon/core/op include/unicon/core/model include/unicon/core/diffusion include/unicon/store \
	    include/unicon/jobs include/unicon/core include/unicon/kernels include/unicon 2>/dev/null || :
clean:
	rm -rf $(BUILD) bin demo
