package jinja

// expr is an expression; its node types are below. stmt is a statement.
type (
	expr interface {
		eval(in *interp, s *scope) (any, error)
	}
	stmt interface {
		exec(in *interp, s *scope) error
	}
)

type (
	constExpr struct{ value any }
	nameExpr  struct {
		name string
		line int
	}
	listExpr  struct{ items []expr }
	tupleExpr struct{ items []expr }
	dictExpr  struct{ keys, values []expr }
	attrExpr  struct {
		of   expr
		name string
		line int
	}
	indexExpr struct {
		of, index expr
		line      int
	}
	sliceExpr struct{ from, to, step expr } // only inside indexExpr; nil: omitted
	callExpr  struct {
		f    expr
		args arguments
		line int
	}
	filterExpr struct {
		name string
		f    filter // nil: unknown, which fails only when reached
		of   expr   // nil: the text of a block
		args arguments
		line int
	}
	testExpr struct {
		name    string
		f       test
		of      expr
		args    arguments
		negated bool
		line    int
	}
	condExpr  struct{ then, cond, otherwise expr } // otherwise may be nil
	notExpr   struct{ of expr }
	andExpr   struct{ left, right expr }
	orExpr    struct{ left, right expr }
	unaryExpr struct {
		op   string
		of   expr
		line int
	}
	binaryExpr struct {
		op          string
		left, right expr
		line        int
	}
	concatExpr  struct{ parts []expr }
	compareExpr struct {
		first expr
		ops   []string
		rest  []expr
		line  int
	}
)

// arguments holds the arguments of a call, a filter or a test.
type arguments struct {
	positional []expr
	names      []string // of the keyword arguments
	keywords   []expr
	list, dict expr // *list and **dict; nil: none
}

// target is the left side of set and for: a name, an attribute of a namespace, or several targets.
type target struct {
	name, attr string
	parts      []target
	line       int
}

type (
	dataStmt   struct{ text Text }
	outputStmt struct {
		of   expr
		line int
	}
	ifStmt struct {
		cond            expr
		then, otherwise []stmt
	}
	forStmt struct {
		target          target
		items, filter   expr // filter may be nil
		body, otherwise []stmt
		recursive       bool
		line            int
	}
	setStmt struct {
		target target
		value  expr
	}
	setBlockStmt struct {
		target  target
		filters []*filterExpr // the first is applied first
		body    []stmt
	}
	withStmt struct {
		targets []target
		values  []expr
		body    []stmt
	}
	macroStmt struct{ macro *macroDef }
	callStmt  struct {
		call   *callExpr
		caller *macroDef
	}
	filterStmt struct {
		filters []*filterExpr
		body    []stmt
	}
	scopeStmt struct{ body []stmt } // generation, autoescape false, block
	blockStmt struct{ body []stmt }
	breakStmt struct{}
	contStmt  struct{}
)

// macroDef is a macro or the body of a call block.
type macroDef struct {
	name       string
	parameters []string
	defaults   []expr // of the last parameters
	body       []stmt
	// Whether the body uses these names; Jinja passes only those that a macro uses.
	varargs, kwargs, caller bool
	line                    int
}
