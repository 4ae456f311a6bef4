package main

import (
	"github.com/docker/go-units"

	"github.com/org/portainer"
)

// optionFlags are the flags behind portainer.Options.
type optionFlags struct {
	portainer.Options
	buildContexts []string
	annotations   []string
	attests       []string
	shmSize       sizeFlag
}

func (o *optionFlags) addFlags(groups flagGroups) {
	f := groups.of(whatIsBuilt)
	f.StringArrayVar(&o.buildContexts, "build-context", nil, "a further context, `NAME=DIRECTORY`, NAME=docker-image://… or NAME=URL; may be repeated")

	f = groups.of(whatTheImage)
	f.StringSliceVar(&o.Platforms, "platform", nil, "what the image is for, an `OS/ARCH` such as linux/arm64; several make an index")
	f.StringArrayVar(&o.annotations, "annotation", nil, "an annotation of the manifest, `NAME=VALUE`; may be repeated")
	f.StringVar(&o.Compression, "compression", "", "of the layers: gzip, zstd, estargz or uncompressed (default gzip)")
	f.IntVar(&o.CompressionLevel, "compression-level", 0, "the level of the compression (default: its own)")
	f.StringVar(&o.SourceDateEpoch, "source-date-epoch", "", "`SECONDS` since 1970, in the place of every time in the image")
	f.StringVar(&o.Provenance, "provenance", "", "attest how the image was built: min or max, or mode=…, true or false as buildx has it")
	f.StringVar(&o.SBOM, "sbom", "", "attest what is in the image: the `IMAGE` that finds out, or default")
	f.StringArrayVar(&o.attests, "attest", nil, "`type=provenance[,mode=max]` or type=sbom[,generator=IMAGE]; may be repeated")
	f.BoolVar(&o.Squash, "squash", false, "make one layer of all that the Dockerfile adds")

	f = groups.of(howStepsRun)
	f.StringArrayVar(&o.Ulimits, "ulimit", nil, "a limit of processes in RUN, such as `nofile=1024:2048`; may be repeated")
	f.Var(&o.shmSize, "shm-size", "the size of /dev/shm in RUN, in bytes or as 64m")
	f.StringVar(&o.CgroupParent, "cgroup-parent", "", "the cgroup of the daemon's machine that RUN gets its own below (a given daemon only)")

	f = groups.of(whatIsCached)
	f.StringSliceVar(&o.NoCacheFilter, "no-cache-filter", nil, "a `STAGE` to build anew; may be repeated")
	f.StringArrayVar(&o.CacheFrom, "cache-from", nil, "where cache comes from: an `IMAGE`, or type=registry,ref=…; may be repeated")
	f.StringArrayVar(&o.CacheTo, "cache-to", nil, "where cache goes to, an `IMAGE` or type=registry,ref=…; may be repeated")
}

// options are what the flags say.
func (o *optionFlags) options() (portainer.Options, error) {
	out := o.Options
	var err error
	if out.BuildContexts, err = pairs("build-context", o.buildContexts); err != nil {
		return out, err
	}
	if out.Annotations, err = pairs("annotation", o.annotations); err != nil {
		return out, err
	}
	if err := attest(&out, o.attests); err != nil {
		return out, err
	}
	out.ShmSize = int64(o.shmSize)
	return out, nil
}

// A sizeFlag is a number of bytes.
type sizeFlag int64

func (s *sizeFlag) Set(text string) error {
	n, err := units.RAMInBytes(text)
	*s = sizeFlag(n)
	return err
}

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return units.BytesSize(float64(*s))
}

func (s *sizeFlag) Type() string { return "size" }
