# resumekit's commands as make targets. A lab's Makefile says
#
#   RESUMEKIT_PREFIX := kit-          (only where it has a `run` or `runs` of its own: then kit-run, kit-resume, kit-runs)
#   include resumekit/resumekit.mk
#
#   make run    EXP=EXP-01 [NAME=...] [SET="a.b=1 c=2"] [NOTES=...] [FRESH=1 | INIT_FROM=PATH] [ACCEPT=1]
#   make resume EXP=EXP-01 [STEP=40000 | BEST=1] [FROM=RUN_ID] [NAME=...] [SET=...] [NOTES=...] [ACCEPT=1]
#   make runs   [EXP=EXP-01]
#   make watch  [EXP=EXP-01] [EVERY=60] [OBSERVE=1]
#   make install-cron | uninstall-cron | install-systemd [NAME=...] | uninstall-systemd [NAME=...]      (YES=1: do not ask)
#
# and for each CONFIG=FILE, RUNS=DIR; for the first two DRY_RUN=1, DETACH=1, ARGS="arguments of the trainer". SET and ARGS
# are split at spaces; a value with spaces in it is for bin/run.sh itself. Only what stands on make's command line counts,
# as it was typed: nothing in it is expanded by make or run by a shell. make exits 2 whatever the command's own code was.

ifndef RESUMEKIT_DIR
RESUMEKIT_DIR := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
endif

# What `make` alone does stays the lab's: the first target of ours is not to become it. Set back at the end of the file.
RESUMEKIT_GOAL := $(.DEFAULT_GOAL)

# Spaces before a comment on its line would become part of it.
RESUMEKIT_PREFIX := $(strip $(RESUMEKIT_PREFIX))
RESUMEKIT_WORDS := EXP EVERY OBSERVE NAME SET NOTES STEP FROM INIT_FROM CONFIG RUNS ARGS FRESH BEST ACCEPT DRY_RUN DETACH YES
RESUMEKIT_NIGHT := install-cron uninstall-cron install-systemd uninstall-systemd
RESUMEKIT_TARGETS := $(addprefix $(RESUMEKIT_PREFIX),run resume runs watch $(RESUMEKIT_NIGHT))

# As typed: $(value) does not expand, and := keeps what it gave. The word itself is set to the same, because make would
# expand it on its way into the environment: a $(shell ...) in it must not run. A word that stands elsewhere than on the
# command line is the lab's own business and left alone.
define resumekit_take
ifneq ($$(filter command,$$(origin $(1))),)
override $(1) := $$(value $(1))
$(RESUMEKIT_TARGETS): export RESUMEKIT_MAKE_$(1) := $$(value $(1))
else
$(RESUMEKIT_TARGETS): export RESUMEKIT_MAKE_$(1) :=
endif
endef
$(foreach word,$(RESUMEKIT_WORDS),$(eval $(call resumekit_take,$(word))))

$(RESUMEKIT_TARGETS): export RESUMEKIT_MAKE_DIR := $(RESUMEKIT_DIR)
# For a sentence that names another target.
$(addprefix $(RESUMEKIT_PREFIX),$(RESUMEKIT_NIGHT)): export RESUMEKIT_MAKE_PREFIX := $(RESUMEKIT_PREFIX)
$(RESUMEKIT_TARGETS): SHELL := /bin/sh
$(RESUMEKIT_TARGETS): .SHELLFLAGS := -c

# The words become arguments here, each one quoted; then the trainer gets an environment without traces of make.
define resumekit_call
set -f; set --; \
case $$RESUMEKIT_MAKE_EXP in \
  -*) printf '%s\n' "make: EXP is '$$RESUMEKIT_MAKE_EXP': an experiment's name does not begin with '-'" >&2; exit 2 ;; \
  ?*) set -- "$$RESUMEKIT_MAKE_EXP" ;; \
esac; \
[ -z "$$RESUMEKIT_MAKE_CONFIG" ] || set -- "$$@" "--config=$$RESUMEKIT_MAKE_CONFIG"; \
[ -z "$$RESUMEKIT_MAKE_RUNS" ] || set -- "$$@" "--runs=$$RESUMEKIT_MAKE_RUNS"; \
[ -z "$$RESUMEKIT_MAKE_EVERY" ] || set -- "$$@" "--every=$$RESUMEKIT_MAKE_EVERY"; \
[ -z "$$RESUMEKIT_MAKE_NAME" ] || set -- "$$@" "--name=$$RESUMEKIT_MAKE_NAME"; \
[ -z "$$RESUMEKIT_MAKE_NOTES" ] || set -- "$$@" "--notes=$$RESUMEKIT_MAKE_NOTES"; \
[ -z "$$RESUMEKIT_MAKE_STEP" ] || set -- "$$@" "--step=$$RESUMEKIT_MAKE_STEP"; \
[ -z "$$RESUMEKIT_MAKE_INIT_FROM" ] || set -- "$$@" "--init-from=$$RESUMEKIT_MAKE_INIT_FROM"; \
[ -z "$$RESUMEKIT_MAKE_FROM" ] || set -- "$$@" "--from=$$RESUMEKIT_MAKE_FROM"; \
for switch in OBSERVE:observe FRESH:fresh BEST:best ACCEPT:accept DRY_RUN:dry-run DETACH:detach YES:yes; do \
  word=$${switch%%:*}; eval "value=\$$RESUMEKIT_MAKE_$$word"; \
  case $$value in \
    ''|0|no|false|off) ;; \
    1|y|yes|true|on) set -- "$$@" "--$${switch#*:}" ;; \
    *) printf '%s\n' "make: $$word is '$$value': write $$word=1, or leave it out" >&2; exit 2 ;; \
  esac; \
done; \
for word in $$RESUMEKIT_MAKE_SET; do set -- "$$@" "--set=$$word"; done; \
[ -z "$$RESUMEKIT_MAKE_ARGS" ] || set -- "$$@" -- $$RESUMEKIT_MAKE_ARGS; \
command=$$RESUMEKIT_MAKE_DIR/$(1).sh; \
unset MAKEFLAGS MAKEOVERRIDES MFLAGS MAKELEVEL RESUMEKIT_MAKE_DIR $(RESUMEKIT_WORDS:%=RESUMEKIT_MAKE_%); \
exec "$$command" $(2) "$$@"
endef

.PHONY: $(RESUMEKIT_TARGETS)

##@ Training
$(RESUMEKIT_PREFIX)run: ## start an experiment, or continue it where it stands: EXP=EXP-01 [SET="a.b=1 c=2"]
	@$(call resumekit_call,bin/run)

$(RESUMEKIT_PREFIX)resume: ## continue from a checkpoint in a new folder: EXP=EXP-01 [STEP=40000]
	@$(call resumekit_call,bin/resume)

$(RESUMEKIT_PREFIX)runs: ## list runs, their state and lineage: [EXP=EXP-01]
	@$(call resumekit_call,bin/runs)

$(RESUMEKIT_PREFIX)watch: ## stop the live runs that are sick, take up what has died: [EXP=EXP-01] [EVERY=60] [OBSERVE=1]
	@$(call resumekit_call,bin/abort-watch)

##@ At night
$(RESUMEKIT_PREFIX)install-cron: ## have cron call the watcher every minute; shows the line and asks
	@$(call resumekit_call,lib/watch_installer,--install-cron)

$(RESUMEKIT_PREFIX)uninstall-cron: ## take that line out of the crontab again
	@$(call resumekit_call,lib/watch_installer,--uninstall-cron)

$(RESUMEKIT_PREFIX)install-systemd: ## the same with two systemd user units; shows them and asks
	@$(call resumekit_call,lib/watch_installer,--install-systemd)

$(RESUMEKIT_PREFIX)uninstall-systemd: ## stop that timer and remove the units
	@$(call resumekit_call,lib/watch_installer,--uninstall-systemd)

# The list of targets, from the makefiles that stand behind it.
define resumekit_list
awk -v prefix='$(RESUMEKIT_PREFIX)' 'BEGIN {FS = ":.*## "} \
  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
  /^[$$()A-Z_a-z-]+:.*## / {sub(/^[$$]\(RESUMEKIT_PREFIX\)/, prefix, $$1); printf "  make %-17s %s\n", $$1, $$2}'
endef

.PHONY: resumekit-help
resumekit-help: SHELL := /bin/sh
resumekit-help: .SHELLFLAGS := -c
resumekit-help:
	@$(resumekit_list) $(RESUMEKIT_DIR)/resumekit.mk
	@printf '\nThe commands themselves are in %s/bin/, each with --help.\n' '$(RESUMEKIT_DIR)'

# `make` alone in a lab whose makefiles have no target: that list, not "No targets". What may be one is left to the lab:
# a line with a colon before any equals sign, a second include, an eval.
define resumekit_no_targets
awk '/^[ ]*[-s]?include / {many++} /^[^\t#=]*:([^=]|$$)/ || /[$$][(]eval/ {some++} \
  END {if (!some && many < 2) print "none"}' /dev/null
endef
RESUMEKIT_OWN := $(lastword $(MAKEFILE_LIST))
ifeq ($(RESUMEKIT_GOAL)$(MAKECMDGOALS),)
RESUMEKIT_FOUND := $(shell $(resumekit_no_targets) $(filter-out $(RESUMEKIT_OWN),$(MAKEFILE_LIST)) 2>/dev/null)
ifeq ($(RESUMEKIT_FOUND),none)
RESUMEKIT_GOAL := resumekit-help
endif
endif
.DEFAULT_GOAL := $(RESUMEKIT_GOAL)
